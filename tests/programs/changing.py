"""A net, a loss and changes that happen to them between two calls, run beside eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, TrainStep

TEMPERATURE = 1.0


@dataclass
class Options:
    """What a program may read from an object of its own."""

    weight: float = 1.0
    widths: list[float] = field(default_factory=lambda: [1.0, 0.5])


class Net(nn.Module):
    """Everything that can change: modes, numbers, buffers, parameters, submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.1)
        self.two = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)
        self.gain = 0.5
        self.options = Options()
        self.register_buffer("shift", torch.zeros(16))
        self.shift: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.one(x)) + self.shift)
        hidden = hidden + self.gain * self.two(hidden) * self.options.weight
        result: torch.Tensor = self.head(self.drop(hidden) * self.options.widths[0])
        return result


class Loss:
    """A loss that holds a number."""

    def __init__(self) -> None:
        self.beta = 0.01

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(x) / TEMPERATURE
        return nn.functional.cross_entropy(logits, y) + self.beta * logits.square().mean()


def batch(seed: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 8, generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )


@dataclass
class Side:
    """A model with its loss and optimizer: the step's, or those of eager PyTorch."""

    model: Net
    loss: Loss
    optimizer: torch.optim.Optimizer


Change = Callable[[Side, int], None]
"""Changes a side; the number counts the changes from 0."""
Make = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def dampened(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer whose first step differs from the others."""
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, dampening=0.1)


def sides(make: Make = adamw, trained: str = "") -> tuple[Side, Side]:
    """Return two equal sides; parameters whose name begins with ``trained`` are left out."""
    torch.manual_seed(0)
    model = Net()
    made = []
    for each in (model, copy.deepcopy(model)):
        chosen = [
            value
            for name, value in each.named_parameters()
            if not (trained and name.startswith(trained))
        ]
        made.append(Side(each, Loss(), make(chosen)))
    return made[0], made[1]


def compiled(side: Side, **options: Any) -> TrainStep:
    options = {"policy": FULL_PRECISION, "backend": "interpreter", **options}
    return mpcompile.compile(side.model, side.loss, side.optimizer, batch(0), **options)


def eager(side: Side, given: tuple[torch.Tensor, ...], accumulate: int, last: bool) -> torch.Tensor:
    """Run one micro-batch of a plain training loop."""
    value = side.loss(side.model, *given)
    torch.autograd.backward(value / accumulate)
    if last:
        side.optimizer.step()
        side.model.zero_grad(set_to_none=True)
    return value.detach()


def check_same(mine: Side, theirs: Side, when: str = "") -> None:
    """Compare weights, buffers and optimizer state bit for bit."""
    held = mine.model.state_dict()
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(held[name], value), (when, name)
    states = [side.optimizer.state_dict()["state"] for side in (mine, theirs)]
    assert states[0].keys() >= states[1].keys()
    for index, entries in states[0].items():
        for key, value in entries.items():
            # Eager PyTorch has no entry before the first update of a parameter.
            expected = states[1].get(index, {}).get(key, torch.zeros_like(value))
            assert torch.equal(value, expected), (when, index, key)


def train_both(
    step: TrainStep,
    mine: Side,
    theirs: Side,
    change: Change,
    *,
    calls: int = 8,
    counts: tuple[int, ...] = (12,),
    accumulate: int = 1,
    first: int = 0,
    context: Callable[[int], Any] | None = None,
) -> Iterator[int]:
    """Train both sides, with a change before every fourth call; compare them after each call."""
    for call in range(first, first + calls):
        if call % 4 == 0:
            for side in (mine, theirs):
                change(side, call // 4)
        given = batch(call, counts[call % len(counts)])
        torch.manual_seed(call)
        expected = eager(theirs, given, accumulate, call % accumulate == accumulate - 1)
        torch.manual_seed(call)
        assert torch.equal(step(*given), expected), call
        check_same(mine, theirs, f"after call {call}")
        yield call
