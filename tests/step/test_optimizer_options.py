"""Options that change between steps, against the same optimizer in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.eager_optimizer import batch, check_equal, eager_step, groups, pair
from programs.dense_optimizers import optimizer_of
from programs.graphs import cross_entropy

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, TrainStep
from mpcompile.step.optimizer_options import is_input, parts, replaced

Optimizer = torch.optim.Optimizer
schedulers = torch.optim.lr_scheduler


def made(name: str, options: dict[str, Any]) -> tuple[TrainStep, Optimizer]:
    model, _ = pair()
    optimizer = optimizer_of(model, name, options)
    step = mpcompile.compile(model, cross_entropy, optimizer, batch(0), policy=FULL_PRECISION)
    return step, optimizer


SCHEDULES: list[Callable[[Optimizer], Any]] = [
    lambda o: schedulers.StepLR(o, 3, gamma=0.5),
    lambda o: schedulers.CosineAnnealingLR(o, 10),
    lambda o: schedulers.LambdaLR(o, [lambda k: 0.9**k, lambda k: 1 / (k + 1)]),
    lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=30),
    lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=5),
    lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.ExponentialLR(o, 0.9)], [5]
    ),
]


@pytest.mark.filterwarnings("error:Detected call of")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_and_schedulers_work_as_always(
    schedule: Callable[[Optimizer], Any], kind: str, late: bool
) -> None:
    left, right = pair()
    options = {"momentum": 0.9, "nesterov": True} if kind == "SGD" else {}
    mine, theirs = (getattr(torch.optim, kind)(groups(m), **options) for m in (left, right))
    made = [] if late else [schedule(mine), schedule(theirs)]
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    assert [arena.group for arena in step.step.arenas] == [0, 1]
    made = made or [schedule(mine), schedule(theirs)]
    for seed in range(20):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
        for scheduler in made:
            scheduler.step()
    check_equal(left, right, (mine, theirs))


def test_a_plateau_lowers_the_rate() -> None:
    left, right = pair()
    mine, theirs = (torch.optim.RAdam(groups(m)) for m in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    both = [schedulers.ReduceLROnPlateau(o, patience=1) for o in (mine, theirs)]
    for seed in range(20):
        value = step(*batch(seed))
        assert torch.equal(value, eager_step(right, theirs, seed))
        for scheduler in both:
            scheduler.step(1.0)
    assert mine.param_groups[0]["lr"] < 1e-3
    check_equal(left, right, (mine, theirs))


CHANGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}, {"dampening": 0.0}),
    ("Adam", {}, {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("AdamW", {}, {"betas": (0.5, 0.9), "weight_decay": 0.3}),
    ("NAdam", {}, {"betas": (0.5, 0.9), "momentum_decay": 0.5}),
    ("RAdam", {}, {"betas": (0.8, 0.9), "eps": 1e-4}),
    ("Adamax", {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "weight_decay": 0.2}),
    ("Adagrad", {"lr_decay": 0.1}, {"lr_decay": 0.2, "eps": 1e-3}),
    ("Adadelta", {}, {"rho": 0.5, "eps": 1e-3}),
    ("RMSprop", {"momentum": 0.9}, {"momentum": 0.5, "alpha": 0.9}),
    ("ASGD", {"t0": 3.0}, {"lambd": 0.1, "alpha": 0.5, "t0": 6.0}),
    ("Rprop", {}, {"step_sizes": (1e-4, 0.02), "etas": (0.4, 1.3)}),
    ("Adafactor", {}, {"beta2_decay": -0.5, "d": 2.0, "eps": (None, 0.1)}),
    ("Muon", {}, {"momentum": 0.5, "weight_decay": 0.0}),
]


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(("name", "options", "changes"), CHANGES)
def test_an_option_that_changes_takes_effect_on_the_next_step(
    name: str, options: dict[str, Any], changes: dict[str, Any], start: int
) -> None:
    left, right = pair()
    mine, theirs = (optimizer_of(model, name, options) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(15):
        if seed == start:
            for optimizer in (mine, theirs):
                optimizer.param_groups[0].update({"lr": 0.03} | changes)
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
    check_equal(left, right, (mine, theirs))


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("SGD", {"momentum": 0.9}, {"momentum": 0.0}, "momentum .* does other arithmetic"),
    ("AdamW", {}, {"weight_decay": 0.0}, "weight_decay .* from 0.01 to 0.0, .* other arithmetic"),
    ("Adam", {}, {"weight_decay": 0.1}, "weight_decay .* constant .* start other than 0"),
    ("Adam", {}, {"amsgrad": True}, "amsgrad .* from False to True, .* constant"),
    ("Adam", {}, {"betas": (0.9, None)}, r"betas\.1 .* not a number"),
    ("Muon", {}, {"ns_steps": 3}, "ns_steps .* constant"),
    ("Muon", {}, {"ns_coefficients": (3.0, -4.7, 2.0)}, "ns_coefficients.* other arithmetic"),
]


@pytest.mark.parametrize(("name", "options", "changes", "match"), REFUSED)
def test_a_change_that_the_graph_does_not_hold_for_is_refused(
    name: str, options: dict[str, Any], changes: dict[str, Any], match: str
) -> None:
    step, optimizer = made(name, options)
    step(*batch(0))
    before = dict(optimizer.param_groups[0])
    optimizer.param_groups[0].update(changes)
    for _ in range(2):
        with pytest.raises(BadInput, match=match):
            step(*batch(0))
    assert step.taken == 1
    optimizer.param_groups[0].update({key: before[key] for key in changes})
    step(*batch(0))
    assert step.taken == 2


def test_a_group_of_parameters_that_the_loss_does_not_read_is_refused() -> None:
    step, optimizer = made("AdamW", {})
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    match = r"the loss does not read parameter 0 of the optimizer's group 1, of shape \[2\]"
    for _ in range(2):
        with pytest.raises(BadInput, match=match):
            step(*batch(0))


def test_a_tensor_may_take_the_place_of_a_number() -> None:
    one, first = made("AdamW", {})
    two, second = made("AdamW", {})
    first.param_groups[0]["lr"] = 0.5
    second.param_groups[0]["lr"] = torch.tensor([0.5])
    for seed in range(3):
        assert torch.equal(one(*batch(seed)), two(*batch(seed)))


def test_what_is_an_input() -> None:
    group = {"params": [1], "lr": 0, "betas": (0.9, 0, 5), "steps": 5, "x": False, "fused": True}
    inputs = [name for name, value in parts(group) if is_input(name, value)]
    assert inputs == ["lr", "betas.0", "betas.2"]
    changed = replaced(group, {"betas.0": 0.5, "lr": 1.0})
    assert changed == {**group, "lr": 1.0, "betas": (0.5, 0, 5)}
