"""Train with a progress bar, for any kind of step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Step(Protocol):
    """The methods that every training step has."""

    def __call__(self, *batch: Any) -> SupportsFloat:
        """Run one step and return the loss."""

    @property
    def loss_scale(self) -> float:
        """The current loss scale."""

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient was not finite."""


class Observer(Protocol):
    """An observer of each step of a run."""

    def before(self, batch: Sequence[Any]) -> None:
        """Receive the batch that the next step reads."""

    def after(self, loss: SupportsFloat) -> None:
        """Receive the loss of the step."""


def train(
    step: Step,
    batches: Iterable[Sequence[Any]],
    steps: int,
    console: Console,
    observer: Observer | None = None,
) -> tuple[list[float], list[float]]:
    """Run a step on each batch; return losses and seconds per step.

    Args:
        step: the step to run.
        batches: one batch per step.
        steps: the number of steps.
        console: where the bar is shown.
        observer: receives each step.
    """
    values: list[SupportsFloat] = []
    seconds: list[float] = []
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  scale {task.fields[scale]}  {task.fields[skipped]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=steps, loss="-", scale="-", skipped="")
        shown = 0.0
        for batch in batches:
            if observer is not None:
                observer.before(batch)
            start = time.perf_counter()
            values.append(step(*batch))
            if observer is not None:
                float(values[-1])  # the observer waits for the device, so the step's time does too
            seconds.append(time.perf_counter() - start)
            if observer is not None:
                observer.after(values[-1])
            bar.advance(task)
            # The bar reads the loss from the device, so it updates only a few times per second.
            if time.perf_counter() - shown > 0.25 or len(values) == steps:
                bar.update(
                    task,
                    loss=f"{float(values[-1]):.4f}",
                    scale=f"{step.loss_scale:g}",
                    skipped=f"{step.skipped} skipped",
                )
                shown = time.perf_counter()
    return [float(value) for value in values], seconds
