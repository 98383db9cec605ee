"""MP101 to MP104: numbers that 16 bits cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import MOVES, SMALLEST, Node, Program, title
from mpcompile.precision import Precision

_LARGEST = Precision.FP16.largest
_BELOW_ONE = {Precision.FP16: 1 - 2.0**-12, Precision.BF16: 1 - 2.0**-9}
"""Half a step below 1: any number between this one and 1 rounds to 1."""

_CHOOSES = frozenset("add sub rsub where masked_fill mul Add Sub Where Mul Pad pad".split())
_ENDS = frozenset(("softmax", "log_softmax", "attention"))
_LOSSES_WITH_SOFTMAX = frozenset(("cross_entropy_loss", "SoftmaxCrossEntropyLoss"))


def overflowing_constants(program: Program) -> Iterator[Finding]:
    """MP101: a constant beyond 65504 that is no mask."""
    for node in program.nodes:
        constant = node.constant
        if constant is None or abs(constant.value) <= _LARGEST or is_mask(program, node):
            continue
        sign = "-" if constant.value < 0 else ""
        fix = (
            "scale what it is compared with or added to, so that the number is below 65504, or "
            f"write float('{sign}inf') if it means no bound"
        )
        if node.narrow:
            what = f"{_said(node)} becomes {sign}inf in FP16: {node.op} computes in 16 bits"
            yield node.finding("MP101", Severity.ERROR, f"{what} {node.by.value}", fix)
        elif constant.costs:
            yield node.finding(
                "MP101",
                Severity.WARNING,
                f"{_said(node)} does not fit FP16, so {node.op} stays in FP32, and with it the "
                "Tensor-Core ops that would read an infinity",
                fix,
                _count(constant.costs, "Tensor-Core op"),
            )
        elif not constant.needless:
            yield node.finding("MP101", Severity.NOTE, _stays(node, "does not fit FP16"), fix)


def vanishing_constants(program: Program) -> Iterator[Finding]:
    """MP102: a constant that FP16 rounds to zero."""
    for node in program.nodes:
        constant = node.constant
        if constant is None or abs(constant.value) > SMALLEST / 2:
            continue
        fix = "use 1e-6 or more"
        if node.narrow:
            what = f"{_said(node)} becomes 0 in FP16: {node.op} computes in 16 bits"
            yield node.finding("MP102", Severity.ERROR, f"{what} {node.by.value}", fix)
        elif not constant.needless:
            yield node.finding("MP102", Severity.NOTE, _stays(node, "becomes 0 in FP16"), fix)


def overflowing_masks(program: Program) -> Iterator[Finding]:
    """MP103: a very negative number that hides logits from a softmax."""
    for node in program.nodes:
        constant = node.constant
        if constant is None or not is_mask(program, node):
            continue
        fix = "write float('-inf'), and see to it that no row is masked everywhere; or write -3e4"
        if constant.becomes is not None:
            message = (
                f"the mask {_number(constant.value)} does not fit FP16 and becomes "
                f"{constant.becomes:g}, which hides as well while logits stay below 1e4"
            )
            yield node.finding("MP103", Severity.NOTE, message, f"nothing, or {fix}")
        elif _masks_attention(program, node):
            message = (
                f"the mask {_number(constant.value)} becomes -inf where attention reads it in "
                "FP16: a row that is masked everywhere, which saw everything alike, now sees "
                "nothing"
            )
            yield node.finding("MP103", Severity.WARNING, message, fix)
        elif node.narrow:
            message = (
                f"the mask {_number(constant.value)} becomes -inf in FP16, as {node.op} computes "
                f"in 16 bits {node.by.value}: a row that is masked everywhere becomes NaN"
            )
            yield node.finding("MP103", Severity.WARNING, message, fix)
        elif not constant.needless:
            message = (
                f"the mask {_number(constant.value)} does not fit FP16, so the logits stay in "
                f"FP32 from {node.op} to the softmax"
            )
            yield node.finding("MP103", Severity.NOTE, message, fix)


def bounds_that_become_one(program: Program) -> Iterator[Finding]:
    """MP104: an upper bound below 1 that 16 bits round to 1."""
    for node in program.nodes:
        least = _BELOW_ONE.get(node.computes) if node.computes is not None else None
        if least is None or node.bound is None or not least <= node.bound < 1:
            continue
        name = title(node.computes or Precision.FP32)
        yield node.finding(
            "MP104",
            Severity.WARNING,
            f"the bound {node.bound:.8g} of {node.op} becomes 1 in {name}, so it keeps nothing "
            "away from 1",
            f"use a bound below {least:g}, or a loss that reads logits and needs none",
        )


def is_mask(program: Program, node: Node) -> bool:
    """Whether a node's constant is far below FP16's range, and all its uses end in a softmax."""
    constant = node.constant
    if constant is None or constant.value > -_LARGEST:
        return False
    if constant.becomes is not None or _ends(node):
        return True
    pending, seen = [node], set[str]()
    while pending:
        current = pending.pop()
        if current.id in seen:
            continue
        seen.add(current.id)
        if not (current is node or current.row in MOVES or current.op in _CHOOSES):
            return False
        readers = program.readers.get(current.id, ())
        if not readers or len(seen) > 64:
            return False
        pending += [reader for reader in readers if not _ends(reader)]
    return node.op in _CHOOSES or node.row in MOVES or not program.readers.get(node.id)


def _ends(node: Node) -> bool:
    return node.row in _ENDS or node.op in _LOSSES_WITH_SOFTMAX


def _masks_attention(program: Program, node: Node) -> bool:
    """Whether the mask reaches an attention op that reads it in 16 bits."""
    pending, seen = [node], set[str]()
    while pending:
        current = pending.pop()
        if current.id in seen:
            continue
        seen.add(current.id)
        if current.row == "attention":
            return current.narrow
        if not _ends(current):
            pending += program.readers.get(current.id, ())
    return False


def _said(node: Node) -> str:
    constant = node.constant
    assert constant is not None
    number = _number(constant.value)
    return (
        f"{constant.holder} holds {number}, which" if constant.holder else f"the constant {number}"
    )


def _stays(node: Node, what: str) -> str:
    return f"{_said(node)} {what}, so {node.op} stays in FP32, and what follows it with it"


def _number(value: float) -> str:
    return f"{value:g}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
