"""What the programs of several processes train."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

import mpcompile
from mpcompile import TrainStep

ROWS = 24


class Net(nn.Module):
    """Weights of more than one kind: cast, in FP32, and a last one too few for a slice each."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 40)
        self.norm = nn.BatchNorm1d(40) if batch_norm else nn.LayerNorm(40)
        self.leave = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.leave(torch.tanh(self.norm(self.enter(x))))
        return value


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 12, generator=generator)
    return x, torch.randint(0, 5, (ROWS,), generator=generator)


def mine(whole: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return this process's rows."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    return tuple(value.chunk(ranks)[rank] for value in whole)


def made(
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    batch_norm: bool = False,
    **options: Any,
) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net(batch_norm)
    options.setdefault("lr", 1e-2)
    return model, optimizer(model.parameters(), **options)


def state(
    step: TrainStep, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return weights, buffers and optimizer state as one process has them."""
    with step.whole():
        found = {name: value.clone() for name, value in model.state_dict().items()}
        for place, entries in optimizer.state_dict()["state"].items():
            found |= {f"{place}.{key}": value.clone() for key, value in entries.items()}
    return found


def everywhere(values: dict[str, torch.Tensor]) -> None:
    """Assert that all processes hold the same bits."""
    for name, value in values.items():
        first = value.clone()
        distributed.broadcast(first, 0)
        assert torch.equal(first, value), f"{name} differs on process {distributed.get_rank()}"


def from_first(make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return what the first process makes, on all of them."""
    made = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(made)
    assert made[0] is not None
    return made[0]


@contextmanager
def processes() -> Iterator[None]:
    distributed.init_process_group("gloo")
    yield
    distributed.barrier()
    distributed.destroy_process_group()
    # Threads of gloo can outlive their group and abort the process (torch 2.13).
    sys.stdout.flush()
    os._exit(0)


def compiled(
    model: nn.Module, optimizer: torch.optim.Optimizer, parallel: dict[str, Any], **options: Any
) -> TrainStep:
    together = mpcompile.data_parallel(**parallel)
    return mpcompile.compile(model, loss, optimizer, mine(batch(0)), parallel=together, **options)
