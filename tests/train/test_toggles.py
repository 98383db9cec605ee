"""Weights that are frozen and trained again, back and forth, as GANs and alternating loops do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, TrainStep, pipeline
from mpcompile.lower import programs

Make = Callable[[Any], torch.optim.Optimizer]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def batch(seed: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.1)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


class Both:
    """A step and eager PyTorch on equal models; counts the captures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, make: Make, **options: Any) -> None:
        self.captures = 0
        capture: Any = vars(pipeline)["capture"]

        def counted(*given: Any) -> Any:
            self.captures += 1
            return capture(*given)

        monkeypatch.setattr(pipeline, "capture", counted)
        self.mine = net()
        self.theirs = copy.deepcopy(self.mine)
        self.optimizers = [make(model.parameters()) for model in (self.mine, self.theirs)]
        options = {"policy": FULL_PRECISION, "backend": "interpreter", **options}
        self.step: TrainStep = mpcompile.compile(
            self.mine, loss, self.optimizers[0], batch(0), **options
        )

    def train(self, toggles: range, parts: tuple[int, int] = (0, 3), count: int = 8) -> None:
        """Toggle which part is frozen before each call, and compare after it."""
        for toggle in toggles:
            for model in (self.mine, self.theirs):
                model[parts[0]].requires_grad_(toggle % 2 == 0)  # type: ignore[index]
                model[parts[1]].requires_grad_(toggle % 2 == 1)  # type: ignore[index]
            given = batch(toggle, count)
            value = self.step(*given)
            expected = loss(self.theirs, *given)
            expected.backward()
            self.optimizers[1].step()
            self.optimizers[1].zero_grad()
            assert torch.equal(value, expected.detach())
            self.check()

    def check(self) -> None:
        held = self.mine.state_dict()
        for name, value in self.theirs.state_dict().items():
            assert torch.equal(held[name], value), name


@pytest.mark.parametrize("make", [sgd, momentum, adamw])
def test_ten_toggles_capture_each_layout_once(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    both = Both(monkeypatch, make)
    both.train(range(4))
    settled = both.captures
    assert settled <= 5
    both.train(range(4, 14))
    assert both.captures == settled


def test_other_shapes_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch, sgd)
    for count in (8, 5):
        both.train(range(2), count=count)
    settled = both.captures
    for count in (8, 5, 8):
        both.train(range(2, 8), count=count)
    assert both.captures == settled == 5


def test_an_open_batch_size_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch, sgd, dynamic=True)
    both.train(range(3))
    settled = both.captures
    for count in (5, 8, 6):
        both.train(range(4), count=count)
    assert both.captures == settled


def test_inductor_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch, sgd, backend="inductor")
    lowered: list[Any] = []
    lower: Any = vars(programs)["lower"]

    def counted(*given: Any) -> Any:
        lowered.append(given)
        return lower(*given)

    monkeypatch.setattr(programs, "lower", counted)
    for toggle in range(8):
        both.mine[0].requires_grad_(toggle % 2 == 0)  # type: ignore[index]
        before = [p.clone() for p in both.mine.parameters()]
        both.step(*batch(toggle))
        moved = [not torch.equal(p, q) for p, q in zip(both.mine.parameters(), before, strict=True)]
        assert (moved[0], moved[4]) == (toggle % 2 == 0, True)
    assert both.captures == 2
    assert len(lowered) == 1


def test_half_precision_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch, sgd, policy=mpcompile.Policy())
    for toggle in range(8):
        both.mine[0].requires_grad_(toggle % 2 == 0)  # type: ignore[index]
        both.step(*batch(toggle))
    for name, copied in both.step.masters(*batch(0)).items():
        held = both.step.values(*batch(0))[name]
        assert torch.equal(held, copied.to(held.dtype))
    assert both.captures == 2


def test_an_option_that_is_a_constant_makes_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Both(monkeypatch, sgd)
    both.train(range(2))
    for optimizer in both.optimizers:
        optimizer.param_groups[0]["weight_decay"] = 0.01
    both.train(range(2, 6))


def test_the_number_of_programs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 2)
    both = Both(monkeypatch, sgd)
    for count in (8, 5, 6):
        both.train(range(2), count=count)
    assert len(both.step._all._programs) == 2
