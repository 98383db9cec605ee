"""What must hold of a step: a tolerance of its loss and gradients, or a score of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import Any, Protocol

from mpcompile.errors import BadInput
from mpcompile.lower.lower import Backend, Lowering
from mpcompile.numerics.node_errors import NodeError, check
from mpcompile.numerics.warm_up import Batches, settled_step
from mpcompile.pipeline import to_step
from mpcompile.program.capture import definition
from mpcompile.program.workload import user_place
from mpcompile.step.graph import results
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Transformed
from mpcompile.train.train_step import TrainStep


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether what was asked for holds, and what was measured."""

    holds: bool
    why: str


class Judge(Protocol):
    """Decides about a transformed workload, which it may use up."""

    def __call__(self, transformed: Transformed) -> Verdict:
        """Return the verdict; the same for the same."""


@dataclass(frozen=True)
class ToleranceJudge:
    """Loss and gradients are as near to FP64 as asked, and everything is finite that is there.

    Attributes:
        tolerance: the largest error of the loss and of each parameter's gradient that counts as
            none; more is an error if rounding alone does not explain it (`NodeError.fails`).
        batches: to train on and to measure.
        steps: on how many of them to train.
    """

    tolerance: float
    batches: Batches
    steps: int

    def __call__(self, transformed: Transformed) -> Verdict:
        """Measure each batch, up to the first that fails."""
        step, trouble = settled_step(transformed, self.batches, self.steps)
        if trouble:
            return Verdict(False, trouble)
        named = _named_results(step)
        most, wrong_anyway = 0.0, set[str]()
        for batch in self.batches[self.steps :]:
            rows = check(step, *batch)
            bad = next((row for row in rows if row.nonfinite), None)
            if bad is not None:
                place = f" in {bad.where.module}" if bad.where.module else ""
                what = f"{bad.nonfinite:,} numbers of {bad.id}{place} ({bad.stage}) are not finite"
                return Verdict(False, what)
            judged = [row for row in rows if row.id in named]
            failed = [row for row in judged if row.fails(self.tolerance)]
            if failed:
                worst = max(failed, key=_error)
                return Verdict(False, f"the error of {named[worst.id]} is {worst.error:.3g}")
            most = max([most, *(row.error for row in judged if row.error <= self.tolerance)])
            wrong_anyway |= {row.id for row in judged if row.error > self.tolerance}
        but = f", but for {len(wrong_anyway)} that FP32 has wrong too" if wrong_anyway else ""
        return Verdict(True, f"the largest error of loss and gradients is {most:.3g}{but}")


def _error(row: NodeError) -> float:
    return row.error


def _named_results(step: TrainStep) -> dict[str, str]:
    """Return, per node that makes the loss or a weight's gradient, what it is."""
    return {
        node.name: name
        for name, node in results(step.step.gradient.graph).items()
        if step.step.slots[name].role in (Role.LOSS, Role.GRADIENT)
    }


@dataclass(frozen=True)
class ScoreJudge:
    """A function of the user's scores at least as much as asked.

    Attributes:
        function: takes a `TrainStep` and its `Workload`, returns a number; higher is better.
        at_least: the score.
        backend: see `mpcompile.compile`.
    """

    function: Callable[..., Any]
    at_least: float
    backend: Backend | None = None

    def __call__(self, transformed: Transformed) -> Verdict:
        """Score."""
        reached = score(self.function, transformed, self.backend)
        return Verdict(reached >= self.at_least, f"it scores {reached:.6g}")


def score(
    function: Callable[..., Any], transformed: Transformed, backend: Backend | None = None
) -> float:
    """Return what a function says of a step; of no number minus infinity.

    Raises:
        BadInput: it raises, or returns something else.
    """
    place = definition(function)
    step = to_step(transformed, Lowering(backend=backend))
    try:
        made = function(step, transformed.workload)
    except Exception as error:
        raise BadInput(
            f"the function raised {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            user_place(error, place.rpartition(":")[0]),
            "make it function(step, workload), which returns a number",
        ) from error
    try:
        reached = float(made)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"the function returned something of type {type(made).__name__}"
        raise BadInput(what, place, "return a number; higher is better") from error
    return float("-inf") if isnan(reached) else reached
