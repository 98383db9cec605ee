"""A net with every kind of state, and a step of it."""

from __future__ import annotations

import torch
from torch import nn

import mpcompile
from mpcompile import TrainStep


class Net(nn.Module):
    """Linear, batch norm, a tied pair of weights, layer norm: every kind of state."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.layer = nn.LayerNorm(16)
        self.two = nn.Linear(16, 16, bias=False)
        self.three = nn.Linear(16, 16)
        self.three.weight = self.two.weight
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.one(x)))
        hidden = hidden + self.three(self.layer(self.two(hidden)))
        result: torch.Tensor = self.head(hidden)
        return result


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(12, 8, generator=generator),
        torch.randint(0, 4, (12,), generator=generator),
    )


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def compiled(model: Net, **options: object) -> TrainStep:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return mpcompile.compile(model, loss, optimizer, batch(), **options)  # type: ignore[arg-type]
