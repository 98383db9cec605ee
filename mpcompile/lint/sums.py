"""MP301 and MP302: sums too long for 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.program import Node, Program, title
from mpcompile.precision import Precision

LONGEST = {Precision.FP16: 1 << 11, Precision.BF16: 1 << 8}
"""After this many equal numbers a running sum in the format no longer grows."""

_SUMS = frozenset(("sum", "scatter sum"))
_OF_ONNX = _SUMS | {"vector norm", "mean"}
_SQUARES = frozenset(("ReduceSumSquare", "ReduceL2"))
_MATMULS = frozenset(("matmul",))
_ACTIVATIONS = frozenset(("parameter", "constant", "buffer"))
_SAME = 1 << 12


def long_sums(program: Program) -> Iterator[Finding]:
    """MP301: a sum, norm or mean of many numbers in 16 bits."""
    rows = _OF_ONNX if program.kind == "onnx" else _SUMS
    for node in program.nodes:
        most = LONGEST.get(node.computes) if node.computes is not None else None
        if most is None or node.length <= most or node.row not in rows:
            continue
        name = title(node.computes or Precision.FP32)
        message = f"{node.op} adds up {node.length:,} numbers in {name} {node.by.value}"
        if node.computes is Precision.FP16 and node.row != "mean":
            bound = Precision.FP16.largest / node.length
            squares = f"root mean square is above {sqrt(bound):.2g}"
            mean = f"mean magnitude is above {bound:.2g}"
            message += f": it overflows where their {squares if node.op in _SQUARES else mean}"
        if program.kind == "onnx" or node.row == "scatter sum":
            # All other sums of PyTorch are added up in FP32 and rounded once.
            message += f"; a kernel that adds up in {name} loses what is below 1/{2 * most:,} of it"
        yield node.finding(
            "MP301", Severity.WARNING, message, "let it read and write FP32, or sum in parts"
        )


def long_products(program: Program) -> Iterator[Finding]:
    """MP302: a matmul of two activations over a long dimension, with a 16-bit result."""
    for node in program.nodes:
        if node.row not in _MATMULS or node.stores is not Precision.FP16 or node.length < _SAME:
            continue
        left, right = program.maker(node, 0), program.maker(node, 1)
        sources = [set(_named(program, side)) for side in (left, right)]
        if any(_bounded(program, side) for side in (left, right)):
            continue
        bound = Precision.FP16.largest / node.length
        if sources[0] & sources[1]:
            yield node.finding(
                "MP302",
                Severity.WARNING,
                f"{node.op} multiplies a tensor by itself and stores sums of {node.length:,} "
                f"squares in FP16: they overflow where the root mean square is above "
                f"{sqrt(bound):.2g}",
                f"divide both factors by {sqrt(node.length):.3g} before the product",
            )
        elif node.length > Precision.FP16.largest:
            yield node.finding(
                "MP302",
                Severity.WARNING,
                f"{node.op} stores sums of {node.length:,} products in FP16: they overflow where "
                f"the mean product is above {bound:.2g}",
                f"divide both factors by {sqrt(node.length):.3g} before the product",
            )


def _named(program: Program, side: Node | None) -> Iterator[str]:
    yield from (node.id for node in program.origins(side, lambda node: node.row == "movement"))


def _bounded(program: Program, side: Node | None) -> bool:
    """Whether a factor is a weight, or probabilities, which add up to 1."""
    origins = program.origins(side, lambda node: node.row in ("movement", "dropout", "cast"))
    return any(node.op in _ACTIVATIONS or node.row == "softmax" for node in origins)
