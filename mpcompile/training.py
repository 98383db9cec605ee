"""Train with a progress bar, whoever runs the step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpcompile.errors import BadInput


class Step(Protocol):
    """What every training step of ours can do."""

    def __call__(self, *batch: Any) -> SupportsFloat:
        """Run one step and return the loss."""

    @property
    def loss_scale(self) -> float:
        """The current loss scale."""

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient was not finite."""


def epochs(data: Iterable[Any], origin: str) -> Iterator[tuple[Any, ...]]:
    """Yield batches without end, an epoch after another.

    Raises:
        BadInput: the data gave no batch.
    """
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch if isinstance(batch, tuple) else tuple(batch)
        if empty:
            raise BadInput(
                "the workload's data gave no batch", origin, "make it iterable repeatedly"
            )


def train(
    step: Step, batches: Iterable[Sequence[Any]], steps: int, console: Console
) -> tuple[list[float], list[float]]:
    """Run a step on each batch; return losses and seconds per step.

    Args:
        step: what to run.
        batches: as many as there are steps.
        steps: how many.
        console: where the bar goes.
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
            start = time.perf_counter()
            values.append(step(*batch))
            seconds.append(time.perf_counter() - start)
            bar.advance(task)
            # The bar reads the loss from the device, so it does that a few times a second only.
            if time.perf_counter() - shown > 0.25 or len(values) == steps:
                bar.update(
                    task,
                    loss=f"{float(values[-1]):.4f}",
                    scale=f"{step.loss_scale:g}",
                    skipped=f"{step.skipped} skipped",
                )
                shown = time.perf_counter()
    return [float(value) for value in values], seconds
