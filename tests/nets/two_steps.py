"""A GAN that is small enough for tests: two nets in one model, each with its own step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import mpcompile
from mpcompile import LossScale, TrainStep

GATED = LossScale(2.0**8, 2.0, 0.5, 3)


class Gan(nn.Module):
    """Batch norm in both halves: each step runs both, so each writes the statistics of both."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 1)
        )


def gan() -> Gan:
    torch.manual_seed(0)
    return Gan()


def judge(model: Gan, x: torch.Tensor, real: bool) -> torch.Tensor:
    logits = model.discriminator(x)
    wanted = torch.ones_like(logits) if real else torch.zeros_like(logits)
    return functional.binary_cross_entropy_with_logits(logits, wanted)


def discriminate(model: Gan, real: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return judge(model, real, True) + judge(model, model.generator(noise).detach(), False)


def generate(model: Gan, noise: torch.Tensor) -> torch.Tensor:
    return judge(model, model.generator(noise), True)


def optimizers(model: Gan) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return (
        torch.optim.Adam(model.discriminator.parameters(), lr=1e-2, betas=(0.5, 0.999)),
        torch.optim.Adam(model.generator.parameters(), lr=1e-2, betas=(0.5, 0.999)),
    )


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 8, generator=generator), torch.randn(6, 4, generator=generator)


def steps(model: Gan, **options: Any) -> tuple[TrainStep, TrainStep]:
    one, two = optimizers(model)
    real, noise = data(0)
    return (
        mpcompile.compile(model, discriminate, one, (real, noise), **options),
        mpcompile.compile(model, generate, two, (noise,), **options),
    )
