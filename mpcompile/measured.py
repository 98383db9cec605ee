"""Let measured ranges decide: keep in FP32 what comes near overflow, release what does not."""

from __future__ import annotations

import warnings
from dataclasses import replace

from mpcompile.dataflow import Dataflow, Op
from mpcompile.errors import BadInput
from mpcompile.fingerprint import graph_of
from mpcompile.footprint import is_neutral
from mpcompile.growth import BOUNDED, GROWING
from mpcompile.precision import Precision
from mpcompile.ranges import NORMAL, Ranges
from mpcompile.rules import Wish


class MeasuredOverflow(UserWarning):
    """An override wants 16 bits for a tensor that was measured to be too large for it."""


def apply_ranges(flow: Dataflow, ranges: Ranges, precision: Precision) -> Dataflow:
    """Return the graph with the wishes that measurements decide.

    A tensor that came nearer to overflow than the margin stays in FP32: so does the op that writes
    it, and each op that would read it in 16 bits, Tensor-Core ops among them. What the user has
    said stands, with a warning. With ``release`` an op whose result can grow, but was measured to
    lie between the smallest normal 16-bit number and the margin, may be stored in 16 bits; a loss
    never is.

    Raises:
        BadInput: the ranges were measured on another program.
    """
    if ranges.fingerprint != graph_of(flow).fingerprint:
        raise BadInput(
            "the ranges were measured on another program, or on other batch shapes",
            "",
            "run `mpcompile calibrate` again",
        )
    limit = precision.largest / 2**ranges.margin_bits
    sizes = {name: found.largest for name, found in ranges.values.items()}
    large = {name: size for name, size in sizes.items() if size > limit}
    ops = []
    for op in flow.ops:
        name = next((name for name in (*op.writes, *op.reads) if _binds(op, name, large)), None)
        if name is not None and op.wish is not Wish.FULL:
            reason = (
                f"{name} reached {large[name]:.3g} in {ranges.batches} batches, beyond "
                f"{limit:.4g}, the largest {precision.short} less {ranges.margin_bits} bits"
            )
            if op.overridden:
                warnings.warn(f"{op.id}: {reason}", MeasuredOverflow, stacklevel=2)
            else:
                op = replace(op, wish=Wish.FULL, reason=reason)
        elif ranges.release and _harmless(op, ranges, limit):
            reach = max(sizes[written] for written in op.writes)
            op = replace(
                op,
                wish=Wish.FREE,
                measured=True,
                reason=f"it reached only {reach:.3g} in {ranges.batches} batches",
            )
        elif ranges.release and op.writes and all(sizes.get(w, limit) < limit for w in op.writes):
            op = replace(op, measured=True)
        ops.append(op)
    return Dataflow(tuple(ops), flow.tensors)


def _binds(op: Op, name: str, large: dict[str, float]) -> bool:
    """Whether an op would store or read a large tensor in 16 bits."""
    return name in large and (name in op.writes or not is_neutral(op, name))


def _harmless(op: Op, ranges: Ranges, limit: float) -> bool:
    """Whether a growing op's results were measured to fit."""
    if op.rule not in GROWING - {"loss"} or op.overridden or op.kind in BOUNDED or not op.streams:
        return False
    found = [ranges.values.get(name) for name in op.writes]
    return bool(found) and all(
        item is not None and NORMAL <= item.largest <= limit and item.below_normal == 0
        for item in found
    )
