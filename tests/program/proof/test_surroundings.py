"""What a program can read is found, with the place as a person writes it."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
import torch
from torch import nn

from mpcompile.program.proof.held import Held, current
from mpcompile.program.proof.surroundings import held_values, surroundings

TEMPERATURE = 2.0
UNREAD = 3.0


class Kind(Enum):
    SUM = 1


@dataclass
class Options:
    beta: float = 0.5
    unread: float = 1.0


class Slotted:
    __slots__ = ("gamma",)

    def __init__(self) -> None:
        self.gamma = 1.0


OPTIONS = Options()


def scaled(value: torch.Tensor) -> torch.Tensor:
    return value * OPTIONS.beta


class Net(nn.Module):
    shift = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.register_buffer("centre", torch.zeros(2))
        self.weights: dict[str, Any] = {"lr": 0.1, "parts": [1, 2]}
        self.slotted = Slotted()
        self.kind = Kind.SUM
        self.calls = 0
        self.me = self

    def forward(self, x: torch.Tensor) -> Any:
        return scaled(self.encoder(x)) * self.weights["lr"] + self.helper() + self.me.shift

    def helper(self) -> float:
        return self.slotted.gamma if self.kind is Kind.SUM else 0.0


def of(model: nn.Module, loss: Any) -> dict[str, Held]:
    return {item.path: item for item in held_values(model, loss)}


def test_attributes_of_modules_that_the_code_names() -> None:
    found = of(Net(), None)
    assert found["model.encoder.1.p"].value == 0.5
    assert found["model.encoder.1.training"].value is True
    assert found["model.training"].value is True
    assert found["model.encoder.0.weight"].value.shape == (2, 2)
    assert found["model.centre"].key == "centre"
    assert found["model.weights['lr']"].value == 0.1
    assert found["model.weights['parts'][1]"].value == 2
    assert found["model.slotted.gamma"].value == 1.0
    assert found["model.kind"].value is Kind.SUM
    assert found["model.shift"].value == 1.0
    assert "model.calls" not in found
    # Of all the objects that this file knows only what the code reads counts.
    assert found["the global OPTIONS.beta"].value == 0.5
    assert not [path for path in found if "unread" in path.lower()]


def test_closures_defaults_partials_and_globals_of_the_loss() -> None:
    beta, options = 0.1, {"tau": 1.0}

    def loss(model: Any, x: torch.Tensor, *, power: int = 2, extra: float) -> Any:
        def inner() -> float:
            return beta * options["tau"] * TEMPERATURE

        return (model(x) ** power).sum() * inner() * extra

    found = of(nn.Linear(2, 2), functools.partial(loss, extra=3.0))
    assert found["beta of loss's closure"].value == 0.1
    assert found["options['tau'] of loss's closure"].value == 1.0
    assert found["the default power of loss"].value == 2
    assert found["argument extra of loss"].value == 3.0
    assert found["the global TEMPERATURE"].value == 2.0


def test_a_bound_method_and_a_callable_object() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.epoch = 3

        def __call__(self, model: Any, x: torch.Tensor) -> Any:
            return self.step(model, x)

        def step(self, model: Any, x: torch.Tensor) -> Any:
            return model(x).sum() * self.epoch

    trainer = Trainer()
    assert of(nn.Linear(2, 2), trainer)["loss.epoch"].value == 3
    assert of(nn.Linear(2, 2), trainer.step)["loss.__self__.epoch"].value == 3


def test_a_decorated_loss_is_walked_as_well() -> None:
    scale = 2.0

    @torch.enable_grad()
    def loss(model: Any, x: torch.Tensor) -> Any:
        return model(x).sum() * scale

    assert of(nn.Linear(2, 2), loss)["scale of loss's closure"].value == 2.0


def test_what_hooks_read() -> None:
    strength = 0.1
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, args, result: result * strength)
    power = 3.0
    model.weight.register_hook(lambda grad: grad * power)
    found = of(model, None)
    assert found["strength of a forward hook of model's closure"].value == 0.1
    assert found["power of a hook of model.weight's closure"].value == 3.0
    assert "a forward hook of model" in found


def test_a_custom_function_that_reads_a_global() -> None:
    found = of(nn.Linear(2, 2), lambda model, x: reverse(model(x)).sum())
    assert found["the global TEMPERATURE"].value == 2.0


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return -TEMPERATURE * grad


def reverse(value: Any) -> Any:
    apply: Any = Reversed.apply
    return apply(value)


def test_generators_and_a_teacher_in_the_closure() -> None:
    teacher, draws = nn.Linear(2, 2), random.Random(0)

    def loss(model: Any, x: torch.Tensor) -> Any:
        return (model(x) - teacher(x)).sum() * draws.random()

    found = surroundings(nn.Linear(2, 2), loss)
    assert "teacher.weight of loss's closure" in dict(found.tensors)
    assert [path for path, _ in found.generators] == ["draws of loss's closure"]


def test_the_present_value_of_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Net()
    found = of(model, lambda model, x: model(x).sum() * TEMPERATURE)
    model.encoder[1].p = 0.25
    del model.weights["lr"]
    monkeypatch.setitem(globals(), "TEMPERATURE", 5.0)
    assert current(found["model.encoder.1.p"]) == 0.25
    assert current(found["model.weights['lr']"], "gone") == "gone"
    assert current(found["the global TEMPERATURE"]) == 5.0


def test_large_data_is_not_walked_and_a_deep_nest_ends() -> None:
    nest: list[Any] = []
    for _ in range(100):
        nest = [nest]
    rows = list(range(100_000))

    def loss(model: Any, x: torch.Tensor) -> Any:
        return model(x).sum() * rows[0] * len(nest)

    assert len(held_values(nn.Linear(2, 2), loss)) < 100
