"""Train until the loss scale is found, as what comes before that says nothing about a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from mpcompile.lower.lower import Lowering
from mpcompile.pipeline import to_step
from mpcompile.step.transformed import Transformed
from mpcompile.train.train_step import TrainStep

ATTEMPTS = 25
"""Steps within which a dynamic loss scale has to settle: 16 take it from 2**16 to 1."""

Batches: TypeAlias = Sequence[tuple[Any, ...]]


def settled_step(transformed: Transformed, batches: Batches, steps: int) -> tuple[TrainStep, str]:
    """Train, and let the loss scale settle: at each batch left, until an update is applied.

    Args:
        transformed: its model is trained.
        batches: those to train on, and those to measure.
        steps: how many of them to train on.

    Returns:
        The step, with the weights it had after training, and why it did not settle, or ``""``.
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
