"""A skipped first step leaves no trace in an optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import LossScale

SCALE = 2.0**10
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    # torch's own begins momentum with unwritten memory here (findings/, torch 2.13).
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "SGD with dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_later_steps_are_those_of_a_run_without_it(name: str) -> None:
    results: list[list[Any]] = []
    for first in (SCALE, 2.0**30):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        batch = torch.randn(16, 8), torch.randn(16, 4)
        optimizer = OPTIMIZERS[name](model.parameters())
        scale = LossScale(first, backoff=SCALE / 2.0**30, ceiling=2.0**30)
        step = mpcompile.compile(model, loss, optimizer, batch, loss_scale=scale)
        skipped = 0 if first == SCALE else 1
        losses = [float(step(*batch)) for _ in range(4 + skipped)]
        assert (int(step.skipped), int(step.taken)) == (skipped, 4)
        results.append([losses[skipped:], *(p.detach().clone() for p in model.parameters())])
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1:], results[1][1:]))
