"""Train until the loss scale has settled: overflows before that do not describe the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from mpcompile.lower.lower import Lowering
from mpcompile.pipeline import to_step
from mpcompile.step.transformed import Transformed
from mpcompile.train.train_step import TrainStep

ATTEMPTS = 25
"""The number of steps in which a dynamic loss scale must settle: 16 take it from 2**16 to 1."""

Batches: TypeAlias = Sequence[tuple[Any, ...]]


def settled_step(transformed: Transformed, batches: Batches, steps: int) -> tuple[TrainStep, str]:
    """Train, then run each remaining batch until an update is applied, to settle the loss scale.

    Args:
        transformed: its model is trained.
        batches: the batches to train on, then the batches to measure.
        steps: the number of batches to train on.

    Returns:
        The step with the weights after training, and the reason if it did not settle, else ``""``.
    """
    step = to_step(transformed, Lowering(backend="interpreter"))
    for batch in batches[:steps]:
        step(*batch)
    model = transformed.workload.model
    state = [*model.parameters(), *model.buffers()]
    start = [tensor.detach().clone() for tensor in state]
    for batch in batches[steps:]:
        trouble = _settle(step, batch, ATTEMPTS if transformed.choices.scale.dynamic else 1)
        with torch.no_grad():
            for tensor, value in zip(state, start, strict=True):
                tensor.copy_(value)
        if trouble:
            return step, trouble
    return step, ""


def _settle(step: TrainStep, batch: tuple[Any, ...], attempts: int) -> str:
    before = step.taken
    for _ in range(attempts):
        loss = step(*batch)
        if not bool(loss.isfinite()):
            return f"the loss is {float(loss)}"
        if step.taken > before:
            return ""
    return f"{step.skipped} steps were skipped, down to a loss scale of {step.loss_scale:g}"
