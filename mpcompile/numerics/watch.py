"""Look at every step of a run: why was it skipped, and what is written to the log."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, SupportsFloat, TextIO

import torch
from rich.console import Console

from mpcompile.errors import printable
from mpcompile.numerics.lockstep import Moment
from mpcompile.numerics.nonfinite import Cause, first_nonfinite
from mpcompile.numerics.run_log import RunRow, SkipCause
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.random_state import RandomState, random_state
from mpcompile.step.processes import all_say
from mpcompile.train.train_step import TrainStep

_STREAK = 20
"""Skipped steps in a row of which a run says so."""

_EDGE = 0.25
"""A dynamic scale stands at the edge of overflow: what two halvings mend is nothing to tell."""


class Watch:
    """Sees the steps of a run, for `mpcompile.commands.training.progress.train`.

    A skipped step changes no state but the loss scale, so it can be run again in the interpreter,
    beside FP64, while the compiled step stays as it is. After each step the host reads the loss and
    whether it was skipped, so it waits for the device.

    Each cause is printed once. A skip that is part of the scaler's search is not: an overflow in
    backward at a loss scale that was never good for a step yet, or that is hardly too large.

    Args:
        step: what is run.
        console: where causes are printed.
        log: takes a line a step, see `mpcompile.numerics.run_log`; None for no log.
        scalars: takes a name, a number and the step's number, as TensorBoard's writer does.
    """

    def __init__(
        self,
        step: TrainStep,
        console: Console,
        log: TextIO | None = None,
        scalars: Callable[[str, float, int], None] | None = None,
    ) -> None:
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
        """Keep what a step reads that a skipped step changes: the loss scale, random numbers."""
        self._batch = batch
        self._scale = self._step.loss_scale
        self._random = random_state(self._step.device)

    def after(self, loss: SupportsFloat) -> None:
        """Log the step; of a skipped one find the cause."""
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
        causes = all_say(first_nonfinite(moment), self._step.parallel)
        found = next(((rank, cause) for rank, cause in enumerate(causes) if cause), None)
        if found is None:
            self._say(
                "none",
                f"step {self._count} was skipped, but in the interpreter, which rounds after each "
                "op, every number of it is finite",
            )
            return None
        rank, cause = found
        fits_at = cause.fits_at or 0.0
        search = self._scale > self._good_scale or fits_at >= _EDGE * self._scale
        expected = cause.fits_at is not None and search
        if not expected:
            head, *rest = cause.sentences()
            by = f" by process {rank}" if len(causes) > 1 else ""
            self._say(cause.node, f"step {self._count} was skipped{by}: {head.rstrip('.')}", *rest)
        return _logged(cause, expected)

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
