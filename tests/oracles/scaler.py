"""PyTorch's own GradScaler beside a step, and batches that overflow both."""

from __future__ import annotations

import torch
from programs.small_step import batch

from mpcompile import LossScale

GATED = LossScale(2.0**4, 2.0, 0.5, 3, 2.0**-60, 2.0**60)


def scaler_of(rule: LossScale) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", rule.initial, rule.growth, rule.backoff, rule.interval)


def bad(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batch(seed)
    return x * float("inf"), y
