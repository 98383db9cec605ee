"""Let measured ranges decide: FP32 for tensors near overflow, a free choice for others."""

from __future__ import annotations

from dataclasses import replace

from mpcompile.errors import BadInput
from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.footprint import is_neutral, reads_wide
from mpcompile.plan.plan import Plan
from mpcompile.plan.ranges import BUDGET, Range, Ranges, tensors_of
from mpcompile.plan.rule import Sensitivity, Wish
from mpcompile.precision import Precision

RELEASABLE: frozenset[str] = frozenset(
    ("range grows", "special function", "sum", "scatter sum", "vector norm", "variance")
)
"""Rows that write FP32 only because of the range; losses and solvers lose digits in 16 bits."""


class MeasuredOverflow(UserWarning):
    """A tensor is in FP16 because the user said so, but measurements say it is too large."""


def apply_ranges(flow: Dataflow, ranges: Ranges, precision: Precision) -> Dataflow:
    """Return the graph with the wishes that measurements decide.

    A tensor that came nearer to overflow than the margin stays in FP32. So does the op that writes
    it, and each op that would read it in 16 bits, including Tensor-Core ops. An override of the
    user stays, see `overruled`. Infinities do not count: FP16 has them too, and masks hold many.

    With ``release`` an op whose result can grow may be stored in 16 bits if the result was measured
    between the smallest normal 16-bit number and the margin; a loss never is. Growth then ends at
    this tensor.

    A tensor whose rounding alone makes a sensitive op wrong by more than the precision budget stays
    in FP32, in BF16 programs as well.

    Raises:
        BadInput: the ranges were measured on another program.
    """
    if ranges.fingerprint != tensors_of(flow):
        raise BadInput(
            "the ranges were measured on another program, or on other batch shapes",
            fix="run `mpcompile calibrate` again",
        )
    fragile = _fragile(ranges, precision)
    if precision is not Precision.FP16:
        return replace(flow, ops=tuple(_unrounded(op, fragile) for op in flow.ops))
    sizes = {name: found.largest_finite for name, found in ranges.values.items()}
    limit = _limit(ranges)
    fits = {n for n, held in ranges.values.items() if ranges.release and _is_harmless(held, limit)}
    fits -= fragile.keys()
    elements = {tensor.id: tensor.elements for tensor in flow.tensors}
    ops = []
    for op in flow.ops:
        tensors = (*op.writes, *(name for name in op.reads if _reads_narrow(op, name)))
        large = next((name for name in tensors if sizes.get(name, 0.0) > limit), None)
        if large is not None and op.wish is not Wish.FULL and not op.overridden:
            reason = _too_large(large, ranges)
            # Results of an op in a branch are not measured; a large input may stay large.
            unmeasured = "" if sizes.keys() >= set(op.writes) else reason
            op = replace(op, wish=Wish.FULL, reason=reason, unfit=op.unfit or unmeasured)
        elif _grew(op) and fits.issuperset(op.writes) and any(elements[n] > 1 for n in op.writes):
            most = max(sizes[name] for name in op.writes)
            reason = f"it stayed between 2^-14 and {most:.3g} in {ranges.batches} batches"
            op = replace(op, wish=Wish.FREE, reason=reason)
        ops.append(_unrounded(op, fragile))
    tensors_now = tuple(replace(t, fits=True) if t.id in fits else t for t in flow.tensors)
    return Dataflow(tuple(ops), tensors_now)


def _fragile(ranges: Ranges, precision: Precision) -> dict[str, str]:
    """Return why each tensor that lost more than the budget in a format must be FP32."""
    found: dict[str, str] = {}
    budget = ranges.precision_budget or BUDGET * 2.0**-precision.digits
    for name, formats in ranges.narrowings.items():
        held = formats.get(precision.short)
        if held is not None and held.worst > budget:
            of = "the gradient of" if held.gradient > held.error else ""
            what = f"{of} {held.reader}".strip()
            found[name] = (
                f"rounding {name} alone to {precision.short} changes {what} by {held.worst:.2g} of "
                f"its size in {ranges.batches} batches, and the budget is "
                f"{budget:.2g}"
            )
    return found


def _unrounded(op: Op, fragile: dict[str, str]) -> Op:
    """Return an op with FP32 if it makes a fragile tensor, or is sensitive and reads one narrow."""
    names = op.writes
    if op.sensitivity is not Sensitivity.HARMLESS:
        names = (*names, *(name for name in op.reads if _reads_narrow(op, name)))
    reason = next((fragile[name] for name in names if name in fragile), "")
    if not reason or op.wish is Wish.FULL or op.overridden:
        return op
    return replace(op, wish=Wish.FULL, reason=reason, exact=True)


def overruled(plan: Plan, ranges: Ranges) -> tuple[str, ...]:
    """Return a sentence per tensor in FP16 that was measured to be too large for it.

    There is one only if an override of the policy or a given plan asks for FP16.
    """
    return tuple(
        f"{name} is in FP16 as you asked, but {_too_large(name, ranges)}"
        for name, held in ranges.values.items()
        if Precision.FP16 in plan.storage.get(name, ()) and held.largest_finite > _limit(ranges)
    )


def _limit(ranges: Ranges) -> float:
    return float(Precision.FP16.largest / 2**ranges.margin_bits)


def _too_large(name: str, ranges: Ranges) -> str:
    return (
        f"{name} reached {ranges.values[name].largest_finite:.3g} in {ranges.batches} batches, "
        f"beyond {_limit(ranges):.5g}, the largest f16 less {ranges.margin_bits} bits"
    )


def _is_harmless(held: Range, limit: float) -> bool:
    return held.largest <= limit and not held.share_below_normal


def _reads_narrow(op: Op, name: str) -> bool:
    """Whether an op that stores 16 bits reads a tensor in 16 bits."""
    return not (is_neutral(op, name) or reads_wide(op, name))


def _grew(op: Op) -> bool:
    """Whether an op writes FP32 only because its result can grow, and a loop can round it."""
    from_table = op.wish is Wish.FULL and op.inside
    from_table = from_table and not (op.overridden or op.unfit or op.exact)
    return from_table and op.rule in RELEASABLE and op.streams and bool(op.reads and op.writes)
