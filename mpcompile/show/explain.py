"""Explain in sentences why a node is as it is, and what the other choice would cost."""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import log2

from mpcompile.errors import BadInput, did_you_mean
from mpcompile.plan.op_table import TABLE
from mpcompile.plan.plan import Plan
from mpcompile.plan.ranges import Range, Ranges
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision
from mpcompile.show.summary import bytes_text
from mpcompile.show.tables import is_in_module
from mpcompile.show.view import PRECISIONS, View, ViewNode

_LISTED = 4
_ON_TENSOR_CORES = frozenset(rule.name for rule in TABLE if rule.wish is Wish.HALF)
_LONG = {"f16": "FP16", "bf16": "BF16", "f32": "FP32"}


@dataclass(frozen=True)
class ExplainInput:
    """The known facts that explanations use.

    Attributes:
        view: the nodes in the order in which they run.
        planned: the planned forward pass; equal to the view if nothing else is known.
        plan: the decisions; None if the model was not planned here.
        ranges: measured ranges, if there are any.
        otherwise: returns the plan if one op stays in FP32 (True) or may run in 16 bits (False).
    """

    view: View
    planned: View
    plan: Plan | None = None
    ranges: Ranges | None = None
    otherwise: Callable[[str, bool], Plan] | None = None


def explain(subject: ExplainInput, name: str) -> list[str]:
    """Return sentences about a node, a cast or a module.

    Args:
        subject: the facts.
        name: an op of the plan, a node of the step, or the path of a module.

    Raises:
        BadInput: nothing has that name.
    """
    for view in (subject.planned, subject.view):
        if name in view.by_id:
            return _node(subject, view, view.by_id[name])
    inside = [node for node in subject.planned.nodes if is_in_module(node, name)]
    if inside:
        return _module(subject, name, inside)
    known = [*subject.planned.by_id, *subject.view.by_id]
    known += [node.where.module for node in subject.planned.nodes]
    raise BadInput(
        f"there is no node, cast or module {name!r}{did_you_mean(name, known)}",
        subject.view.source or None,
        "`mpcompile inspect --all` lists them",
    )


def _node(subject: ExplainInput, view: View, node: ViewNode) -> list[str]:
    said = [_what(node), *_line(node)]
    if node.precision != "other" and node.role != "output":
        said.append(_how(node))
    if node.reason and node.role == "input":
        said.append(f"{node.reason[0].upper()}{node.reason[1:]}.")
    elif node.reason:
        rule = f" (rule {node.rule!r} of the op table)" if node.role == "op" and node.rule else ""
        said.append(f"Why: {node.reason}{rule}.")
    said += _neighbours(view, node)
    if subject.ranges is not None:
        said += _measured(subject.ranges, node)
    said += _other_choice(subject, node)
    if view is subject.planned and view is not subject.view:
        said += _in_step(subject, node)
    return said


def _what(node: ViewNode) -> str:
    kind = {"cast": "a cast", "input": f"an input ({node.op})", "output": "an output"}
    module = f" in {node.where.module}" if node.where.module else ""
    stage = f", in {node.stage}" if node.stage != "forward" else ""
    return f"{node.id} is {kind.get(node.role, f'the op {node.op}')}{module}{stage}; {node.type}."


def _line(node: ViewNode) -> list[str]:
    where = node.where
    if not where.file:
        return []
    text = linecache.getline(where.file, where.line).strip()
    return [f"It comes from {where.file}:{where.line}{f':  {text}' if text else '.'}"]


def _how(node: ViewNode) -> str:
    stored = " and ".join(_LONG.get(part, part) for part in node.stores)
    computes = _LONG.get(node.computes, node.computes)
    if node.role == "cast":
        return f"It converts to {stored}: {bytes_text(node.bytes)} are written if it is not fused."
    if node.role == "input" or not computes:
        return f"It is stored in {stored}: {bytes_text(node.bytes)}."
    if node.role == "view":
        return f"It moves no bytes: it is a view of its operand, in {stored}."
    kept = ", which backward reads again" if node.saved else ""
    where = "memory" if node.bytes else "no memory of its own"
    return f"It computes in {computes}; its result is {stored} in {where}{kept}."


def _neighbours(view: View, node: ViewNode) -> list[str]:
    said = []
    reads = [view.by_id[name] for name in node.reads]
    if reads:
        said.append(f"It reads {_listed([_named(item) for item in reads])}.")
    readers = [view.by_id[name] for name in view.readers.get(node.id, ())]
    if readers:
        said.append(f"It is read by {_listed([_named(item) for item in readers])}.")
    return said


def _named(node: ViewNode) -> str:
    stored = "" if node.role == "output" or not node.stores else f" ({node.op}, {node.stored})"
    return f"{node.id}{stored}"


def _listed(items: list[str]) -> str:
    if len(items) > _LISTED:
        return f"{', '.join(items[:_LISTED])} and {len(items) - _LISTED} more"
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _measured(ranges: Ranges, node: ViewNode) -> list[str]:
    said = []
    pairs = (
        ("its result", ranges.values.get(node.id)),
        ("its gradient", ranges.gradients.get(node.id)),
    )
    for what, held in pairs:
        if held is not None:
            over = _counted(ranges.batches, "batch", "batches")
            said.append(f"Measured over {over}, {what} is {_range(held)}.")
    return said


def _range(held: Range) -> str:
    if not held.largest_finite and not held.nonfinite:
        return "zero everywhere"
    largest = held.largest_finite
    bits = log2(Precision.FP16.largest / largest) if largest else 0.0
    side = "below" if bits >= 0 else "above"
    lost = held.share_below_smallest
    small = f"; {lost:.1%} of it would become zero in FP16" if lost else ""
    wrong = f"; {held.nonfinite:,} numbers were not finite" if held.nonfinite else ""
    return f"at most {largest:.4g}, {abs(bits):.1f} bits {side} FP16's largest{small}{wrong}"


def _other_choice(subject: ExplainInput, node: ViewNode) -> list[str]:
    plan, otherwise = subject.plan, subject.otherwise
    if plan is None or otherwise is None or node.role != "op" or node.id != node.planned:
        return []
    try:
        decision = plan.decision(node.id)
    except KeyError:
        return []
    to_full = decision.stores is not Precision.FP32
    other = otherwise(node.id, to_full)
    flag = f"--{'full' if to_full else 'half'} node:{node.id}"
    where = "FP32" if to_full else "16 bits"
    if other.decisions == plan.decisions:
        return [f"In {where} nothing else would change. `{flag}` requests it."]
    more = [
        _change(other.cost - plan.cost, "written"),
        _change(_cast_bytes(other) - _cast_bytes(plan), "cast"),
    ]
    casts = len(other.casts) - len(plan.casts)
    if casts:
        word = "more" if casts > 0 else "fewer"
        more.append(_counted(abs(casts), f"{word} cast", f"{word} casts"))
    changes = [text for text in more if text]
    if to_full and decision.rule in _ON_TENSOR_CORES:
        changes.append("no Tensor Core")
    return [
        f"In {where} instead: {', '.join(changes) or 'the same bytes and casts'}, as the "
        f"planner counts. `{flag}` requests it."
    ]


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _change(count: int, what: str) -> str:
    if not count:
        return ""
    return f"{bytes_text(abs(count))} {'more' if count > 0 else 'fewer'} {what}"


def _cast_bytes(plan: Plan) -> int:
    return sum(cast.bytes for cast in plan.casts)


def _in_step(subject: ExplainInput, node: ViewNode) -> list[str]:
    by_stage: dict[str, list[str]] = {}
    for item in subject.view.nodes:
        if item.planned == node.planned != "" and item.role in ("op", "cast"):
            by_stage.setdefault(item.stage, []).append(f"{item.id} ({item.precision})")
    parts = [f"{_listed(names)} in {stage}" for stage, names in by_stage.items()]
    return [f"In the step it is {'; '.join(parts)}."] if parts else []


def _module(subject: ExplainInput, name: str, nodes: list[ViewNode]) -> list[str]:
    ops = [node for node in nodes if node.role == "op"]
    counts: Counter[str] = Counter(node.precision for node in ops)
    parts = ", ".join(f"{counts[p]} in {p}" for p in PRECISIONS if counts[p])
    said = [f"{name} is a module with {_counted(len(ops), 'op', 'ops')}: {parts}."]
    step = [node for node in subject.view.nodes if is_in_module(node, name)]
    casts = [node for node in step if node.role == "cast"]
    saved = sum(node.bytes for node in step if node.saved)
    if subject.view is not subject.planned:
        said.append(
            f"Its part of the step has {_counted(len(casts), 'cast', 'casts')} and keeps "
            f"{bytes_text(saved)} for backward."
        )
    why: dict[tuple[str, str], list[str]] = {}
    for node in ops:
        why.setdefault((node.precision, node.reason), []).append(f"{node.id} ({node.op})")
    for (precision, reason), names in why.items():
        said.append(f"{precision}: {_listed(names)}{f': {reason}' if reason else ''}.")
    return said
