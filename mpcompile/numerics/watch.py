"""Watch every step of a run: find the cause of a skip, and write the log."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, SupportsFloat, TextIO

import torch
from rich.console import Console

from mpcompile.errors import printable
from mpcompile.numerics.first_batch import is_finite, settled
from mpcompile.numerics.lockstep import Moment
from mpcompile.numerics.naming import kept_in_full
from mpcompile.numerics.nonfinite import Cause, first_nonfinite
from mpcompile.numerics.remedies import Remedy, can_try, tried
from mpcompile.numerics.run_log import RunRow, SkipCause
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.random_state import RandomState, random_state
from mpcompile.step.processes import all_say
from mpcompile.step.transformed import Transformed
from mpcompile.train.train_step import TrainStep

_STREAK = 20
"""After this many skipped steps in a row a run prints a message."""

_EDGE = 0.25
"""A dynamic scale stays close to overflow, so an overflow that two halvings mend is expected."""


class Watch:
    """An observer of a run's steps, for `mpcompile.commands.training.progress.train`.

    A skipped step changes only the loss scale. So it can run again in the interpreter, together
    with FP64; the compiled step does not change. After each step the host reads the loss and
    whether the step was skipped, so it waits for the device.

    Each cause is printed once. An expected skip is not printed: an overflow in backward at a loss
    scale at which no step has succeeded yet, or which is at most four times too large.

    Args:
        step: the step of the run.
        console: prints the causes.
        log: gets one line per step, see `mpcompile.numerics.run_log`; None for no log.
        scalars: called with a name, a number and the step's number, as TensorBoard's writer is.
        transformed: the step before it was lowered, to try overrides; None: none is named.
    """

    def __init__(
        self,
        step: TrainStep,
        console: Console,
        log: TextIO | None = None,
        scalars: Callable[[str, float, int], None] | None = None,
        transformed: Transformed | None = None,
    ) -> None:
        self._transformed = transformed
        self._step, self._console, self._log, self._scalars = step, console, log, scalars
        self._count = step.taken + step.skipped
        self._skipped = step.skipped
        self._good_scale = 0.0
        self._streak = 0
        self._said: set[str] = set()
        self._batch: Sequence[Any] = ()
        self._scale = 1.0
        self._random: RandomState | None = None

    def before(self, batch: Sequence[Any]) -> None:
        """Keep the batch, the loss scale and the random state, to run a skipped step again."""
        self._batch = batch
        self._scale = self._step.loss_scale
        self._random = random_state(self._step.device)

    def after(self, loss: SupportsFloat) -> None:
        """Log the step; find the cause if it was skipped."""
        skipped, value = self._step.skipped, float(loss)
        was_skipped, self._skipped = skipped > self._skipped, skipped
        row = RunRow(
            step=self._count,
            loss=value if isfinite(value) else None,
            scale=self._scale,
            skipped=was_skipped,
            cause=self._cause() if was_skipped else None,
        )
        if not was_skipped:
            self._good_scale = max(self._good_scale, self._scale)
            if not isfinite(value):
                self._say("loss", f"the loss of step {self._count} is not finite")
        self._streak = self._streak + 1 if was_skipped else 0
        if self._streak == _STREAK:
            self._say("streak", f"{_STREAK} steps in a row were skipped")
        self._write(row, value)
        self._count += 1

    def _write(self, row: RunRow, loss: float) -> None:
        if self._log is not None:
            self._log.write(row.to_json())
            self._log.flush()
        if self._scalars is not None:
            now = {"loss": loss, "loss_scale": self._scale, "skipped": self._skipped}
            for name, number in now.items():
                self._scalars(name, number, self._count)

    def _cause(self) -> SkipCause | None:
        assert self._random is not None
        values = self._step.values(*self._batch)
        if SCALE in values:
            values[SCALE] = torch.full_like(values[SCALE], self._scale)
        moment = Moment(
            self._step.graph_of(*self._batch),
            values,
            self._step.masters(*self._batch),
            self._random,
        )
        own = first_nonfinite(moment)
        causes = all_say((own, self._advice(own, moment)), self._step.parallel)
        found = next(
            ((rank, cause, advice) for rank, (cause, advice) in enumerate(causes) if cause), None
        )
        if found is None:
            self._say(
                "none",
                f"step {self._count} was skipped, but all its numbers are finite in the "
                "interpreter, which rounds after each op",
            )
            return None
        rank, cause, advice = found
        expected = self._is_expected(cause)
        if not expected:
            head, *rest = cause.sentences(advice)
            by = f" by process {rank}" if len(causes) > 1 else ""
            self._say(cause.node, f"step {self._count} was skipped{by}: {head.rstrip('.')}", *rest)
        return _logged(cause, expected)

    def _is_expected(self, cause: Cause) -> bool:
        """Whether the skip is a part of the scaler's search."""
        fits_at = cause.fits_at or 0.0
        search = self._scale > self._good_scale or fits_at >= _EDGE * self._scale
        return cause.fits_at is not None and search

    def _advice(self, cause: Cause | None, moment: Moment) -> str:
        """Return a sentence with an override that was tried on the same batch, or without one."""
        if cause is None or not cause.keep or cause.fits_at or cause.node in self._said:
            return ""
        if self._transformed is None or not can_try(self._transformed):
            return ""
        nodes = {node.name: node for node in moment.step.gradient.graph.nodes}
        read = [kept_in_full(nodes[item.name]) for item in cause.reads if item.name in nodes]
        own = kept_in_full(nodes[cause.node])
        remedies = [Remedy.of_ops(ops) for ops in (cause.keep, own, *read) if ops]

        def holds(other: Transformed) -> bool:
            again, _, made = settled(other, moment.random, scale=self._scale)
            return is_finite(again, made)

        remedy = tried(self._transformed, remedies, holds, cause.where.module, tuple(self._batch))
        if remedy is None:
            return (
                "No few ops in FP32 were found that make it finite; `mpcompile tune` finds a set."
            )
        return f"`{remedy.flags}` keeps it in FP32. With it, this step is finite."

    def _say(self, about: str, head: str, *details: str) -> None:
        if about in self._said:
            return
        self._said.add(about)
        here = f"{Path.cwd()}{os.sep}"
        for line in (f"{head}.", *(f"  {detail}" for detail in details)):
            self._console.print(printable(line.replace(here, "")), markup=False, soft_wrap=True)


def _logged(cause: Cause, expected: bool) -> SkipCause:
    return SkipCause(
        node=cause.node,
        op=cause.op,
        stage=cause.stage,
        module=cause.where.module,
        file=cause.where.file,
        line=cause.where.line,
        why=cause.why,
        gradients=cause.gradients,
        expected=expected,
    )
