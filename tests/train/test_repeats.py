"""A batch whose step was skipped runs again, and then all is as if the scale had fitted at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import FULL_PRECISION, LossScale, SkippedSteps, TrainStep

HIGH = LossScale(2.0**24, interval=3, retry=True)
LOW = LossScale(2.0**-20, interval=10**6)


def made(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def batches(count: int, steep: int | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return batches; the gradient of one is so large that FP32 overflows at a scale of 2^24."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for index in range(count):
        factor = torch.tensor(1e34 if index == steep else 1.0)
        x = torch.randn(10, 6, generator=draw)
        found.append((x, torch.randint(3, (10,), generator=draw), factor))
    return found


def loss(model: nn.Module, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y) * factor


def compiled(rule: LossScale, **options: Any) -> tuple[TrainStep, nn.Module, Any]:
    """In FP32 a power of two changes no bit, so both scales must give the same weights."""
    model, optimizer = made()
    example = batches(1)[0]
    options.setdefault("policy", FULL_PRECISION)
    step = mpcompile.compile(model, loss, optimizer, example, loss_scale=rule, **options)
    return step, model, optimizer


def state(model: nn.Module, optimizer: Any) -> list[Tensor]:
    entries = [entry for state in optimizer.state.values() for entry in state.values()]
    return [value.clone() for value in (*model.state_dict().values(), *entries)]


def check_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dropout", [True, False])
def test_the_first_batch_is_run_until_it_fits(dropout: bool) -> None:
    """Random numbers are drawn as if the first scale had been the right one."""
    given = batches(4, steep=0)
    rule = LossScale(2.0**24, measured=True)
    results = []
    for first in (rule, LOW):
        step, model, optimizer = compiled(first, verify=False)
        if not dropout:
            model[2].p = 0.0  # type: ignore[index]
        torch.manual_seed(5)
        losses = [float(step(*batch)) for batch in given]
        assert (step.taken, step.skipped, step.retried) == (4, 0, 0)
        results.append([*state(model, optimizer), torch.tensor(losses)])
    check_same(*results)


def test_a_loss_that_is_not_finite_is_skipped_at_once() -> None:
    step, *_ = compiled(LossScale(2.0**10, measured=True), verify=False)
    x, y, factor = batches(1)[0]
    step(x * float("nan"), y, factor)
    assert (step.taken, step.skipped, step.loss_scale) == (0, 1, 2.0**9)
    step(x, y, factor)
    assert (step.taken, step.skipped, step.loss_scale) == (1, 1, 2.0**9)


def test_a_gradient_that_no_scale_makes_finite_leaves_a_usual_scale() -> None:
    step, *_ = compiled(LossScale(2.0**24, floor=2.0**20, measured=True), verify=False)
    step(*batches(1, steep=0)[0])  # infinite at 2^20 too
    assert (step.taken, step.skipped, step.loss_scale) == (0, 1, 2.0**23)


def test_a_scale_that_is_given_is_not_searched() -> None:
    step, *_ = compiled(LossScale(2.0**10, measured=True), verify=False)
    step.load_scaler_state(step.scaler_state() | {"scale": 2.0**24})
    step(*batches(1, steep=0)[0])
    assert (step.taken, step.skipped, step.loss_scale) == (0, 1, 2.0**23)


def test_after_a_checkpoint_nothing_is_searched(tmp_path: Path) -> None:
    rule = LossScale(2.0**24, measured=True)
    step, *_ = compiled(rule, verify=False)
    step(*batches(1)[0])
    step.save(tmp_path)
    again, *_ = compiled(LossScale(2.0**8, measured=True), verify=False)
    again.load(tmp_path)  # the first scale of a dynamic rule need not be the same
    assert again.loss_scale == 2.0**24
    again(*batches(1, steep=0)[0])
    assert (again.taken, again.skipped, again.loss_scale) == (1, 1, 2.0**23)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_batch_is_run_again_before_the_next(accumulate: int) -> None:
    results = []
    for rule in (HIGH, LOW):
        step, model, optimizer = compiled(rule, accumulate=accumulate)
        model[2].p = 0.0  # type: ignore[index]
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        step.scheduler(schedule)
        for batch in batches(6, steep=3):
            step(*batch)
        step.settle()
        assert step.taken == 6 // accumulate
        assert step.retried == (1 if rule.retry else 0)
        assert schedule.last_epoch == step.taken
        results.append(state(model, optimizer))
    check_same(*results)


def test_a_checkpoint_has_the_last_batch_in_it(tmp_path: Path) -> None:
    step, *_ = compiled(HIGH)
    for batch in batches(3, steep=2):
        step(*batch)
    assert step.taken == 2
    step.save(tmp_path)
    assert (step.taken, step.retried) == (3, 1)
    other, *_ = compiled(LossScale(retry=True, interval=3))
    other.load(tmp_path)
    assert other.taken == 3
    assert other.loss_scale == step.loss_scale


@pytest.mark.parametrize("what", ["batch", "loss", "gradient"])
def test_a_batch_that_cannot_run_again_is_said(what: str) -> None:
    floor = 2.0**20 if what == "gradient" else 2.0**-24
    step, *_ = compiled(LossScale(2.0**24, floor=floor, retry=True))
    x, y, factor = batches(1, steep=0)[0]
    if what == "loss":
        x = x * float("inf")
    step(x, y, factor)
    if what == "batch":
        x.add_(1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step(*batches(1)[0])
    [found] = [item for item in said if item.category is SkippedSteps]
    wanted = {
        "batch": "was written to",
        "loss": "loss is not finite",
        "gradient": "not finite even at",
    }
    assert wanted[what] in str(found.message)
    assert found.filename == __file__
    assert step.retried == 1
