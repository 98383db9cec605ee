"""A variational net and losses that read Python numbers, and changes of those numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, TrainStep

WEIGHT = 0.1
"""A global that a loss reads."""

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
Change = Callable[["Vae", int], None]


class Vae(nn.Module):
    """A net with a number of its own, which its forward pass or a loss may read."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 16)
        self.decoder = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)
        self.beta = 0.1
        self.epoch = 1
        self.scaled = False

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Call the net, with a type."""
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self(x)
        return result

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, variance = self.encoder(x).chunk(2, dim=1)
        sample = mean + torch.randn_like(mean) * (0.5 * variance).exp()
        if self.scaled:
            sample = sample * self.beta
        return self.decoder(sample), mean, variance


def parts(model: Vae, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return reconstruction and divergence, both 0-d."""
    made, mean, variance = model.run(x)
    divergence = -0.5 * (1 + variance - mean.square() - variance.exp()).mean()
    return nn.functional.mse_loss(made, x), divergence


def annealed(model: Vae, x: torch.Tensor) -> torch.Tensor:
    reconstruction, divergence = parts(model, x)
    return reconstruction + model.beta * divergence


def mixed(model: Vae, x: torch.Tensor) -> torch.Tensor:
    reconstruction, divergence = parts(model, x)
    return (1 - model.beta) * reconstruction + model.beta**2 * 0.5 * divergence


def by_epoch(model: Vae, x: torch.Tensor) -> torch.Tensor:
    reconstruction, divergence = parts(model, x)
    return reconstruction + model.epoch / 30 * divergence + (model.epoch % 7) * divergence


def everywhere(model: Vae, x: torch.Tensor) -> torch.Tensor:
    """Use the number beside tensors of each kind, and on each side of each operator."""
    made, mean, _ = model.run(x)
    beta = model.beta
    part = (beta - made) + (made - beta) / (beta + 1.5) + beta / (made.exp() + 1)
    count = (mean > beta).sum() * beta + (x > 0).sum() / (1 + beta)
    return part.square().mean() + 1e-3 * count + mean.double().mul(beta).sum().float()


def weighted(model: Vae, x: torch.Tensor) -> torch.Tensor:
    reconstruction, divergence = parts(model, x)
    return reconstruction + WEIGHT * divergence


def decided(model: Vae, x: torch.Tensor) -> torch.Tensor:
    reconstruction, divergence = parts(model, x)
    return reconstruction + min(1.0, model.epoch / 10) * divergence


def dropped(model: Vae, x: torch.Tensor) -> torch.Tensor:
    reconstruction, divergence = parts(model, model.drop(x))
    return reconstruction + model.beta * divergence


def with_exp(model: Vae, x: torch.Tensor) -> torch.Tensor:
    return parts(model, x)[0] * math.exp(model.beta)


def in_range(model: Vae, x: torch.Tensor) -> torch.Tensor:
    for _ in range(model.epoch):
        x = 0.9 * x
    return parts(model, x)[0]


def powered(model: Vae, x: torch.Tensor) -> torch.Tensor:
    return model.run(x)[0].abs().add(1).pow(model.beta).mean()


def masked(model: Vae, x: torch.Tensor) -> torch.Tensor:
    return (parts(model, x)[0] * ((x > 0) * model.beta)).mean()


def caught(model: Vae, x: torch.Tensor) -> torch.Tensor:
    """The program itself catches what the number raises."""
    try:
        factor = float(model.beta)
    except Exception:
        factor = 3.0
    return parts(model, x)[0] * factor


class Reverse(torch.autograd.Function):
    """Reads the number in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return -gradient * ctx.factor, None


reverse: Callable[..., Any] = Reverse.apply


def reversed_(model: Vae, x: torch.Tensor) -> torch.Tensor:
    return reverse(model.run(x)[0], model.beta).square().mean()  # type: ignore[no-any-return]


def beta(model: Vae, turn: int) -> None:
    model.beta = min(1.0, 0.1 + turn / 37)


def epoch(model: Vae, turn: int) -> None:
    model.epoch = turn + 1


def scaled(model: Vae, turn: int) -> None:
    model.scaled = True
    beta(model, turn)


def both(model: Vae, turn: int) -> None:
    beta(model, turn)
    epoch(model, turn)


def rate(model: Vae, turn: int) -> None:
    model.drop.p = 0.1 + turn / 50


def rate_and_beta(model: Vae, turn: int) -> None:
    rate(model, turn)
    beta(model, turn)


def in_global(_: Vae, turn: int) -> None:
    global WEIGHT
    WEIGHT = 0.1 + turn / 37


@dataclass
class Side:
    model: Vae
    loss: Loss
    optimizer: torch.optim.Optimizer


def side(loss: Loss) -> Side:
    torch.manual_seed(0)
    model = Vae()
    return Side(model, loss, torch.optim.AdamW(model.parameters(), lr=1e-2))


def batch(turn: int, count: int = 6) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(turn))


def trained(
    loss: Loss,
    change: Change,
    *,
    calls: int = 20,
    accumulate: int = 1,
    sizes: Callable[[int], int] = lambda _: 6,
    **options: Any,
) -> TrainStep:
    """Train a step beside eager PyTorch while numbers change; all must be equal bit for bit."""
    mine, theirs = side(loss), side(loss)
    change(mine.model, 0)
    options = {"policy": FULL_PRECISION, "backend": "interpreter", **options}
    step = mpcompile.compile(
        mine.model, loss, mine.optimizer, (batch(0, sizes(0)),), accumulate=accumulate, **options
    )
    for turn in range(calls):
        change(mine.model, turn)
        change(theirs.model, turn)
        x = batch(turn, sizes(turn))
        torch.manual_seed(turn)
        expected = loss(theirs.model, x)
        (expected / accumulate).backward()
        if (turn + 1) % accumulate == 0:
            theirs.optimizer.step()
            theirs.optimizer.zero_grad()
        torch.manual_seed(turn)
        assert torch.equal(step(x), expected.detach()), turn
        for one, other in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(one, other), turn
    return step


def without_draws(model: Vae, x: torch.Tensor) -> torch.Tensor:
    made = model.decoder(model.encoder(x)[:, :8] * model.beta)
    loss: torch.Tensor = (1 - model.beta) * made.square().mean() + model.beta * made.abs().mean()
    return loss
