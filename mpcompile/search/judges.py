"""Requirements on a step: a tolerance for loss and gradients, or a score of the user's function."""

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
from mpcompile.program.tracing.export import definition
from mpcompile.program.workload import position_in_file
from mpcompile.step.graph import results
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Transformed
from mpcompile.train.train_step import TrainStep


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the requirement holds, and the measurement in words."""

    holds: bool
    why: str


class Judge(Protocol):
    """A callable that judges a transformed workload, and may change it."""

    def __call__(self, transformed: Transformed) -> Verdict:
        """Return the verdict; equal workloads get equal verdicts."""


@dataclass(frozen=True)
class ToleranceJudge:
    """A judge: loss and gradients are close to FP64, and finite where FP64 is finite.

    Attributes:
        tolerance: the largest accepted error of the loss and of each parameter's gradient; a larger
            error fails if rounding alone does not explain it (`NodeError.fails`).
        batches: the batches to train on, then the batches to measure.
        steps: the number of batches to train on.
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
                module = f" in {bad.where.module}" if bad.where.module else ""
                what = f"{bad.nonfinite:,} numbers of {bad.id}{module} ({bad.stage}) are not finite"
                return Verdict(False, what)
            judged = [row for row in rows if row.id in named]
            failed = [row for row in judged if row.fails(self.tolerance)]
            if failed:
                worst = max(failed, key=_error)
                return Verdict(False, f"the error of {named[worst.id]} is {worst.error:.3g}")
            most = max([most, *(row.error for row in judged if row.error <= self.tolerance)])
            wrong_anyway |= {row.id for row in judged if row.error > self.tolerance}
        but = (
            f"; not counted: {len(wrong_anyway)} that are over the tolerance in FP32 too"
            if wrong_anyway
            else ""
        )
        return Verdict(True, f"the largest error of loss and gradients is {most:.3g}{but}")


def _error(row: NodeError) -> float:
    return row.error


def _named_results(step: TrainStep) -> dict[str, str]:
    """Return the names of the loss and of the weights' gradients, by the node that makes them."""
    return {
        node.name: name
        for name, node in results(step.step.gradient.graph).items()
        if step.step.slots[name].role in (Role.LOSS, Role.GRADIENT)
    }


@dataclass(frozen=True)
class ScoreJudge:
    """A judge: the score of the user's function is at least a given number.

    Attributes:
        function: takes a `TrainStep` and its `Workload`, returns a number; higher is better.
        at_least: the smallest accepted score.
        backend: see `mpcompile.compile`.
    """

    function: Callable[..., Any]
    at_least: float
    backend: Backend | None = None

    def __call__(self, transformed: Transformed) -> Verdict:
        """Compute the score and compare it."""
        reached = score(self.function, transformed, self.backend)
        return Verdict(reached >= self.at_least, f"the score is {reached:.6g}")


def score(
    function: Callable[..., Any], transformed: Transformed, backend: Backend | None = None
) -> float:
    """Return a function's score of a step; NaN counts as minus infinity.

    Raises:
        BadInput: the function raises, or does not return a number.
    """
    where = definition(function)
    step = to_step(transformed, Lowering(backend=backend))
    try:
        made = function(step, transformed.workload)
    except Exception as error:
        raise BadInput(
            f"the function raised {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            position_in_file(error, where.rpartition(":")[0]) if where else None,
            "let it accept (step, workload) and return a number",
        ) from error
    try:
        reached = float(made)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"the function returned a {type(made).__name__}, not a number"
        raise BadInput(what, where, "return a float; higher is better") from error
    return float("-inf") if isnan(reached) else reached
