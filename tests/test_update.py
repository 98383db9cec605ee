"""Every optimizer that can be captured, against itself in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Tied, cross_entropy
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, CannotCapture

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.01}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("NAdam", {}),
    ("Adamax", {}),
    ("Adadelta", {}),
    ("Rprop", {}),
]


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 10, (6,), generator=generator)
    return x, torch.randint(0, 10, (6,), generator=generator)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Tied()
    return model, copy.deepcopy(model)


def eager_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> torch.Tensor:
    value = cross_entropy(model, *batch(seed))
    optimizer.zero_grad()
    torch.autograd.backward(value)
    optimizer.step()
    return value.detach()


def check_equal(
    left: nn.Module,
    right: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(a, b), name
    mine, theirs = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert mine.keys() == theirs.keys()
    for index in mine:
        assert mine[index].keys() == theirs[index].keys()
        for key in mine[index]:
            assert torch.equal(mine[index][key], theirs[index][key]), key


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_twenty_steps_in_fp32_are_bitwise_those_of_plain_pytorch(
    name: str, options: dict[str, Any]
) -> None:
    left, right = pair()
    make = getattr(torch.optim, name)
    mine, theirs = (make(model.parameters(), lr=0.01, **options) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(20):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
    check_equal(left, right, (mine, theirs))


def test_an_optimizer_that_mixes_elements_is_traced_a_parameter_at_a_time() -> None:
    left, right = pair()
    optimizers = [
        torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=0.01)
        for model in (left, right)
    ]
    step = mpcompile.compile(left, cross_entropy, optimizers[0], batch(0), policy=FULL_PRECISION)
    assert all(not arena.flat for arena in step.step.arenas)
    for seed in range(10):
        assert torch.equal(step(*batch(seed)), eager_step(right, optimizers[1], seed))
    check_equal(left, right, (optimizers[0], optimizers[1]))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [
        {"params": matrices, "lr": 0.02, "weight_decay": 0.1},
        {"params": vectors, "lr": 0.001, "weight_decay": 0.0},
    ]


SCHEDULES: list[Callable[[torch.optim.Optimizer], Any]] = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.5),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30, cycle_momentum=False),
]


@pytest.mark.filterwarnings("error:Detected call of")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_and_schedulers_work_as_always(schedule: Callable[..., Any]) -> None:
    left, right = pair()
    mine, theirs = (torch.optim.AdamW(groups(model)) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    assert [arena.group for arena in step.step.arenas] == [0, 1]
    schedulers = schedule(mine), schedule(theirs)
    for seed in range(20):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
        for scheduler in schedulers:
            scheduler.step()
    check_equal(left, right, (mine, theirs))


def test_frozen_parameters_stay_and_are_not_in_an_arena() -> None:
    left, right = pair()
    for model in (left, right):
        dict(model.named_parameters())["gate.weight"].requires_grad_(False)
    mine, theirs = (torch.optim.AdamW(model.parameters(), lr=0.01) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(5):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
    assert not any("gate.weight" in arena.parameters for arena in step.step.arenas)
    check_equal(left, right, (mine, theirs))


def test_what_needs_a_closure_is_bad_input() -> None:
    model, _ = pair()
    with pytest.raises(BadInput, match=r"LBFGS\.step\(\) needs a closure"):
        mpcompile.compile(model, cross_entropy, torch.optim.LBFGS(model.parameters()), batch(0))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("RAdam", {}, "RAdam.step\\(\\) decides in Python"),
        ("ASGD", {}, "ASGD.step\\(\\) decides in Python"),
        ("Adafactor", {}, "Adafactor.step\\(\\) decides in Python"),
        ("SGD", {"momentum": 0.9, "dampening": 0.1}, "the first step of SGD differs"),
    ],
)
def test_what_cannot_be_captured_yet_says_so(
    name: str, options: dict[str, Any], match: str
) -> None:
    model, _ = pair()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotCapture, match=match):
        mpcompile.compile(model, cross_entropy, optimizer, batch(0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
