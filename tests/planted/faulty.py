"""Programs with ops that must not be 16 bits, and the overrides that make them 16 bits."""

from __future__ import annotations

import torch
from torch import nn

from mpcompile.plan.policy import Policy
from mpcompile.program.workload import Workload

HALF = Policy(half=("op:mul", "op:pow", "op:mean", "op:add", "op:rsqrt", "op:div"))
"""All ops of these kinds run in 16 bits; an override of a single node is more specific."""


class Bounded(nn.Module):
    """Its hidden values are about 1e6 before a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.rise, self.end = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.rise.weight.mul_(1e6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.end(torch.tanh(self.rise(torch.relu(self.before(x)))))
        return hidden


class Attention(nn.Module):
    """Attention written by hand, with logits beyond 65504 before they are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.end = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 3)
        with torch.no_grad():
            self.query.weight.mul_(400)
            self.key.weight.mul_(400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.query(x) @ self.key(x).transpose(-1, -2) * 1e-6
        result: torch.Tensor = self.end((torch.softmax(logits, -1) @ x).mean(1))
        return result


class SmallNorm(nn.Module):
    """A norm written by hand, whose squares and epsilon become zero in FP16."""

    def __init__(self) -> None:
        super().__init__()
        self.end = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = x * 2.0**-14
        result: torch.Tensor = self.end(
            small * torch.rsqrt(small.pow(2).mean(-1, keepdim=True) + 1e-12)
        )
        return result


class Product(nn.Module):
    """A product beyond 65504 that a division makes small again."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.start(x)
        result: torch.Tensor = self.end(hidden.mul(torch.relu(hidden) * 1e5).div(1e4))
        return result


class Branch(nn.Module):
    """A fault in one branch of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.end = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.one.weight.mul_(1e6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def tall(x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.one(x))

        def plain(x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.other(x))

        result: torch.Tensor = self.end(torch.cond(x.sum() < 1e9, tall, plain, (x,)))
        return result


class Both(nn.Module):
    """Two independent faults."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Bounded(), Product()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.one(x) + self.other(x)
        return result


def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), target)


def workload(kind: type[nn.Module], rate: float = 1e-6) -> Workload:
    torch.manual_seed(0)
    model = kind()
    shape = (4, 5, 8) if kind is Attention else (4, 8)
    data = [(torch.randn(shape), torch.randint(0, 3, (4,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Workload(model, data[0], loss, optimizer, data)
