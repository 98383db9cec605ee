"""A program for ``mpcompile run`` that can kill its process, or make it overflow, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mpcompile import Workload

ONCE, AT = os.environ.get("ONCE"), int(os.environ.get("AT", "-1"))
WHO, WHAT = os.environ.get("WHO", "1"), os.environ.get("WHAT", "kill")


class Rows:
    """Twelve batches an epoch, in an order that each epoch draws."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(96, 8, generator=generator)
        self.y = torch.randint(0, 4, (96,), generator=generator)
        self.given = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(96).view(12, 8):
            self.given += 1
            x = self.x[rows].clone()
            if self.given > AT >= 0 and os.environ.get("RANK") == WHO and ONCE:
                if WHAT == "overflow" and self.given in (AT + 1, AT + 2):
                    x *= 1e30
                if WHAT == "kill" and not Path(ONCE).exists():
                    Path(ONCE).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                if WHAT == "term" and not Path(ONCE).exists():
                    Path(ONCE).touch()
                    os.kill(os.getppid(), signal.SIGTERM)  # torchrun, which tells everyone
            yield x, self.y[rows]


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def workload() -> Workload:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)
    )
    batch = torch.zeros(8, 8), torch.zeros(8, dtype=torch.int64)
    return Workload(net, batch, loss, torch.optim.AdamW(net.parameters(), lr=1e-2), Rows())
