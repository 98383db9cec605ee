"""Dropout and other random ops in a compiled step: eager PyTorch's numbers, new ones each step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, Policy, TrainStep


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 32), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(torch.relu(self.one(x)), 0.5, self.training)
        made: torch.Tensor = self.two(hidden + 0.1 * torch.randn_like(hidden))
        return made


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = model(x).square().mean()
    return value


def made(policy: Policy) -> tuple[TrainStep, Noisy]:
    torch.manual_seed(0)
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.ones(4, 8)
    return mpcompile.compile(model, loss, optimizer, (x,), policy=policy), model


def run(step: TrainStep, count: int = 4) -> list[float]:
    return [float(step(torch.ones(4, 8))) for _ in range(count)]


@pytest.mark.parametrize("policy", [FULL_PRECISION, Policy()], ids=["fp32", "fp16"])
def test_each_step_draws_anew_and_a_seed_repeats_a_run(policy: Policy) -> None:
    """The rate is zero: only the random numbers differ."""
    step, _ = made(policy)
    torch.manual_seed(3)
    first = run(step)
    assert len(set(first)) == len(first)
    torch.manual_seed(3)
    assert run(step) == first
    torch.manual_seed(4)
    assert run(step) != first


def test_in_fp32_they_are_the_numbers_of_eager_pytorch() -> None:
    step, model = made(FULL_PRECISION)
    torch.manual_seed(3)
    mine = run(step)
    torch.manual_seed(3)
    assert mine == [float(loss(model, torch.ones(4, 8)).detach()) for _ in range(4)]


def test_another_shape_of_batch_draws_from_the_same_stream() -> None:
    step, model = made(FULL_PRECISION)
    shapes = (4, 3, 4, 3)
    torch.manual_seed(3)
    mine = [float(step(torch.ones(count, 8))) for count in shapes]
    torch.manual_seed(3)
    assert mine == [float(loss(model, torch.ones(count, 8)).detach()) for count in shapes]
