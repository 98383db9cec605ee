"""Weights that the program writes: the optimizer moves the written value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from torch import nn

import mpcompile
from mpcompile import BadInput, LossScale

BATCHES = batches(12, (6, 8), (6, 8))


class Clips(nn.Module):
    """Clips its weights before it reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.first.weight.clamp_(-0.1, 0.1)
        self.last.bias.data.clamp_(-0.01, 0.01)
        result: torch.Tensor = self.last(self.first(x).tanh())
        return result


def squared(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = ((model(x) - y) ** 2).mean()
    return result


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "one weight at a time": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_fp32_it_trains_bitwise_as_in_eager_pytorch(optimizer: str) -> None:
    pair = SideBySide(Clips(), squared, BATCHES[0], OPTIMIZERS[optimizer])
    pair.train(BATCHES)
    assert pair.differing() == []


def test_inductor_follows_eager_pytorch() -> None:
    pair = SideBySide(Clips(), squared, BATCHES[0], backend="inductor")
    pair.train(BATCHES)
    assert pair.distance() < 1e-4


def test_a_skipped_step_undoes_the_write() -> None:
    model = Clips()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scale = LossScale(initial=2.0**120, ceiling=2.0**121)
    step = mpcompile.compile(model, squared, optimizer, BATCHES[0], loss_scale=scale)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(*BATCHES[0])
    assert step.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{"accumulate": 2}])
def test_with_accumulation_it_is_refused(options: dict[str, Any]) -> None:
    model = Clips()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.raises(BadInput, match=r"writes to the weight first\.weight, which it trains"):
        mpcompile.compile(model, squared, optimizer, BATCHES[0], **options)
