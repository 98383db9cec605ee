"""A run that saves checkpoints: at regular steps, when a signal stops it, and at its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from mpcompile.artifacts import check_file, write_file
from mpcompile.commands.terminal import warnings_on_one_line
from mpcompile.errors import BadInput
from mpcompile.numerics.run_log import read_run_log
from mpcompile.options.run import CheckpointFlags
from mpcompile.program.random_state import seed_all
from mpcompile.program.workload import Workload
from mpcompile.step.processes import first_says, largest
from mpcompile.train.checkpoint_folder import checkpoints
from mpcompile.train.data_position import Batches
from mpcompile.train.train_step import TrainStep

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def check_saving(saving: CheckpointFlags, log: Path | None) -> None:
    """Raise BadInput, before compilation, if a run cannot be saved with these flags."""
    if saving.out is None and (saving.checkpoint_every is not None or saving.resume):
        raise BadInput("--checkpoint-every and --resume need --out", fix="give --out DIR")
    if saving.checkpoint_every is not None and saving.checkpoint_every < 1:
        raise BadInput(f"--checkpoint-every is {saving.checkpoint_every}", fix="give at least 1")
    if saving.keep < 1:
        raise BadInput(f"--keep is {saving.keep}", fix="give at least 1")
    if saving.out is not None and saving.out.exists() and not saving.out.is_dir():
        raise BadInput(f"{saving.out} is not a folder", fix="give a folder as --out")
    if saving.out is not None and not saving.resume and checkpoints(saving.out):
        raise BadInput(
            f"{saving.out} already holds checkpoints",
            fix="give --resume to continue that run, or another --out",
        )
    if log is not None:
        check_file(log, force=saving.resume)


class SavedRun:
    """Batches for a step, with checkpoints in between.

    Attributes:
        done: steps done so far, with those before a resume.
        stopped: the signal that ended the run, or None.
    """

    def __init__(
        self, step: TrainStep, workload: Workload, saving: CheckpointFlags, out: Console
    ) -> None:
        self._step, self._saving, self._console = step, saving, out
        together = step.parallel
        self._data = Batches(workload, step.device, together)
        if together is not None and together.rank:
            seed_all(torch.initial_seed() + together.rank)  # each process has its own dropout masks
        self._saved: int | None = None
        self.stopped: signal.Signals | None = None
        self._told = 0
        if saving.resume and saving.out is not None:
            self._resume(saving.out)
        self.done = step.taken + step.skipped

    def batches(self, steps: int) -> Iterator[tuple[Any, ...]]:
        """Yield the remaining batches of `steps` steps, and save checkpoints in between.

        The work after a step is done when the next batch is requested. After a signal the step
        finishes, the signal is recorded, and the run ends; a second signal is not caught.
        """
        with self._noting_signals():
            for batch in islice(self._data, max(0, steps - self.done)):
                yield batch
                self.done += 1
                self._agree_to_stop()
                every = self._saving.checkpoint_every
                if self.stopped is not None or (every is not None and self.done % every == 0):
                    self._save()
                if self.stopped is not None:
                    return
            self._save()

    def _agree_to_stop(self) -> None:
        """Stop after the same step as the other processes, if any of them received a signal.

        A signal ends the run only here: a later signal counts after the next step, on all
        processes.
        """
        if self._saving.out is not None:
            number = largest(self._told, self._step.parallel)
            self.stopped = signal.Signals(number) if number else None

    def _resume(self, run: Path) -> None:
        if not first_says(bool(checkpoints(run)), self._step.parallel):
            self._say(f"there is no checkpoint in {run} yet; the run starts at step 0")
            return
        with warnings_on_one_line():
            found = self._step.load(run, data=self._data)
        self._saved = self._step.taken + self._step.skipped
        self._say(f"continuing from {found} after {self._saved:,} steps")

    def _save(self) -> None:
        if self._saving.out is not None and self._saved != self.done:
            self._step.save(self._saving.out, keep=self._saving.keep, data=self._data)
            self._saved = self.done

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        if self._saving.out is None:
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._told = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _say(self, sentence: str) -> None:
        self._console.print(Text(f"{sentence}."), soft_wrap=True)


def cut_log(log: Path, done: int) -> None:
    """Remove from the log of a run the steps that will run again.

    Raises:
        BadInput: the file is no log of a run.
    """
    if log.exists():
        rows = read_run_log(log)
        if not rows and log.stat().st_size:
            raise BadInput(
                "the file has no line of a training step", str(log), "give another file as --log"
            )
        write_file(log, "".join(row.to_json() for row in rows if row.step < done), force=True)
