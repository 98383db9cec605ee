"""Walk over a graph once and find the bound of each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf
from types import MappingProxyType

from mpcompile.plan.bounds.bound import (
    FOREIGN,
    NOTHING,
    Bound,
    Operand,
    Step,
    point,
    rounded_to,
    union,
)
from mpcompile.plan.bounds.functions import Args
from mpcompile.plan.bounds.table import MOVES, TABLE
from mpcompile.plan.op_table import ONNX_RULES, TORCH_RULES
from mpcompile.plan.rule import PrecisionClass
from mpcompile.precision import Precision

_NO_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType({})
_LAYERS = frozenset(
    name
    for rules in (TORCH_RULES, ONNX_RULES)
    for name, rule in rules.items()
    if rule.precision_class is PrecisionClass.TENSOR_CORE
)


def bounds_of(
    steps: Iterable[Step],
    precision: Precision,
    ranges: Mapping[str, tuple[float, float]] = _NO_RANGES,
) -> dict[str, Bound]:
    """Return the bound of each result; a tensor that is not in it has none.

    Args:
        steps: the ops of a graph in their order.
        precision: the 16-bit format that the errors are about.
        ranges: per tensor the least and the largest number with which the program runs at all,
            such as the indices of a table.
    """
    if precision is Precision.FP32:
        return {}
    unit = 2.0**-precision.digits
    found: dict[str, Bound] = {}

    def of(operand: Operand) -> Bound:
        if isinstance(operand, str):
            return found.get(operand, FOREIGN)
        if isinstance(operand, float | int):
            return point(float(operand), precision)
        return union(*map(of, operand)) if operand else NOTHING

    wrong: set[str] = set()
    for step in steps:
        operands = tuple(map(of, step.operands))
        bound = _bound(step, Args(operands, step.length, unit))
        limits = ranges.get(step.result) or step.limits
        if limits is not None:
            bound = _limited(bound, limits, step.limits is not None)
        if wrong and not wrong.isdisjoint(_names(step)):
            bound = replace(bound, error=inf, relative=inf, rounded=True)
        if not step.full and not bound.exact:
            wrong.add(step.result)  # demands do not go through tensors that are not FP32
        if step.full and step.kind not in MOVES:
            bound = rounded_to(bound, precision)
        found[step.result] = bound
    return found


def _names(step: Step) -> Iterator[str]:
    for operand in step.operands:
        if isinstance(operand, str):
            yield operand
        elif isinstance(operand, tuple):
            yield from operand


def _bound(step: Step, args: Args) -> Bound:
    row = MOVES.get(step.kind) or TABLE.get(step.kind)
    if row is None and step.kind in _LAYERS:
        row = TABLE["layer"]
    if row is not None:
        return row(args)
    if step.kind == "weight":
        known = TABLE["held"](args) if args.operands else replace(NOTHING, relative=0.0)
        return replace(known, weight=True)
    whole = union(*args.operands) if args.operands else NOTHING
    same = all(part.exact for part in args.operands)
    return replace(
        NOTHING,
        error=0.0 if same else inf,
        relative=0.0 if not args.operands else inf,
        rounded=whole.rounded,
        weight=whole.weight,
    )


def _limited(bound: Bound, limits: tuple[float, float], integer: bool) -> Bound:
    """Return a bound with the limits of a dtype or of a range.

    An integer that leaves its dtype comes back from the other end, so then only the limits hold.
    """
    low, high = limits
    integer = integer or bound.integer
    if low <= bound.low and bound.high <= high:
        return replace(bound, integer=integer)
    error = 0.0 if bound.exact else inf
    return replace(bound, low=low, high=high, integer=integer, error=error)
