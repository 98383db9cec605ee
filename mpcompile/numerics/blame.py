"""The node with which a bad first batch begins, and an override that was tried and mends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mpcompile.errors import from_here
from mpcompile.numerics.first_batch import GRADIENT, FirstBatch, compare
from mpcompile.numerics.lockstep import Moment
from mpcompile.numerics.node_errors import NodeError, ancestors, errors_in, origin
from mpcompile.numerics.nonfinite import Cause, first_nonfinite
from mpcompile.numerics.remedies import (
    Remedy,
    can_try,
    has_loss_scale,
    module_of,
    remedies_for,
    tried,
)
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.proof.verify import Proof
from mpcompile.step.graph import results
from mpcompile.step.transformed import Transformed


@dataclass(frozen=True, slots=True)
class Blame:
    """Why a first batch is too far from FP32, and what helps.

    Attributes:
        what: the result that is far, and the node with which that begins; no full stop.
        where: the node's ``file:line`` in the user's program, or None.
        remedy: an override with which the same batch is within its limits; None: none was found.
        tried: whether overrides were tried: those of a given plan count before them.
    """

    what: str
    where: str | None
    remedy: Remedy | None
    tried: bool


def blame(transformed: Transformed, proof: Proof, found: FirstBatch) -> Blame:
    """Find the first node that is wrong, and try overrides.

    Args:
        transformed: the step.
        proof: of the same workload.
        found: the comparison, with a result that is far.
    """
    rows = errors_in(found.moment)
    ends = results(found.moment.step.gradient.graph)
    reached = ancestors(rows, [ends[far.slot].name for far in found.far])
    suspects = [row for row in rows if row.id in reached]
    limit = GRADIENT[transformed.plan.precision]
    named = next((row for row in suspects if row.fails(limit)), suspects[-1])
    cause = first_nonfinite(found.moment) if named.nonfinite else None
    begins = origin(rows, named)

    def holds(other: Transformed) -> bool:
        again = compare(other, proof)
        return again is not None and not again.far

    scale = loss_scale(transformed, found.moment)
    remedies = [*_of_cause(cause), *remedies_for(rows, named, scale)]
    what = f"on the first batch {found.far[0]}; {_named(named)} is the first node that is far off"
    if cause is not None:
        what += f": {cause.why}"
    elif begins is not named and begins.own > limit / 2:
        what += f", and the error begins with {_named(begins)} at {from_here(str(begins.where))}"
    where = named.where.at or transformed.workload.origin
    remedy = tried(transformed, remedies, holds, module_of(rows, named))
    return Blame(what, where, remedy, can_try(transformed))


def _of_cause(cause: Cause | None) -> Iterator[Remedy]:
    if cause is not None and cause.fits_at is not None:
        yield Remedy(scale=cause.fits_at)
        yield Remedy(scale=cause.fits_at / 16)  # another gradient may be larger
    elif cause is not None and cause.keep:
        yield Remedy.of_ops(cause.keep)


def loss_scale(transformed: Transformed, moment: Moment) -> float | None:
    """Return the loss scale of inputs, or None if the step has none to choose."""
    if not has_loss_scale(transformed) or SCALE not in moment.values:
        return None
    return float(moment.values[SCALE])


def _named(row: NodeError) -> str:
    module = f" in {row.where.module}" if row.where.module else ""
    return f"{row.id} ({row.op}, {row.stage}){module}"
