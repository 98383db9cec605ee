"""The parts of a training script around a step, schedules and clipping, against eager PyTorch."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from oracles.scaler import GATED, bad, scaler_of
from programs.small_step import Net, batch, compiled, loss, net
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, ReduceLROnPlateau

import mpcompile
from mpcompile import FULL_PRECISION, BadInput


def eager(
    model: Net,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *given: torch.Tensor,
    norm: float | None = None,
    value: float | None = None,
) -> bool:
    """Run one step of the loop that PyTorch's documentation shows; return whether it stepped."""
    optimizer.zero_grad()
    torch.autograd.backward(scaler.scale(loss(model, *given)))
    scaler.unscale_(optimizer)
    if norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    if value is not None:
        torch.nn.utils.clip_grad_value_(model.parameters(), value)
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def optimizer_of(step: mpcompile.TrainStep) -> torch.optim.Optimizer:
    return step._optimizer


def test_a_schedule_steps_with_applied_updates_only() -> None:
    model, peer = net(), net()
    step = compiled(model, policy=FULL_PRECISION, loss_scale=GATED)
    optimizer, scaler = torch.optim.AdamW(peer.parameters(), lr=1e-2), scaler_of(GATED)
    mine, theirs = (ExponentialLR(o, 0.5) for o in (optimizer_of(step), optimizer))
    step.scheduler(mine)
    statistics = dict(peer.named_buffers())
    for seed in range(8):
        given = bad(seed) if seed in (0, 3, 4) else batch(seed)
        kept = {name: buffer.clone() for name, buffer in statistics.items()}
        if eager(peer, optimizer, scaler, *given):
            theirs.step()
        else:  # eager PyTorch lets a skipped step change the statistics of a batch norm
            for name, buffer in statistics.items():
                buffer.copy_(kept[name])
        step(*given)
        assert bool(step.applied) == (seed not in (0, 3, 4))
    step.settle()
    step.settle()
    assert mine.get_last_lr() == theirs.get_last_lr() == [1e-2 * 0.5**5]
    assert (step.taken, step.skipped) == (5, 3)
    for name, held in peer.state_dict().items():
        assert torch.equal(model.state_dict()[name], held), name


def test_a_schedule_is_told_that_the_optimizer_has_stepped() -> None:
    step = compiled(net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.scheduler(ExponentialLR(optimizer_of(step), 0.9))
        step(*batch())
        step(*batch())


def test_without_a_gate_nothing_is_read_and_each_step_counts() -> None:
    step = compiled(net(), policy=FULL_PRECISION)
    schedule = LambdaLR(optimizer_of(step), lambda count: 0.5**count)
    step.scheduler(schedule)
    for seed in range(3):
        step(*batch(seed))
        assert bool(step.applied)
    step.settle()
    assert schedule.get_last_lr() == [1e-2 * 0.5**3]
    assert step._schedules._flag is None


def test_a_schedule_of_something_else_is_refused() -> None:
    step, other = compiled(net()), torch.optim.SGD(net().parameters(), lr=1.0)
    with pytest.raises(BadInput, match="another optimizer"):
        step.scheduler(ExponentialLR(other, 0.5))
    with pytest.raises(BadInput, match="measured number"):
        step.scheduler(ReduceLROnPlateau(optimizer_of(step)))
    with pytest.raises(BadInput, match="is not a learning-rate schedule"):
        step.scheduler(other)  # type: ignore[arg-type]
    schedule: LRScheduler = ExponentialLR(optimizer_of(step), 0.5)
    step.scheduler(schedule)
    with pytest.raises(BadInput, match="already"):
        step.scheduler(schedule)


CLIPS: list[dict[str, Any]] = [{"norm": 0.3}, {"norm": 100.0}, {"value": 0.02}]


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_clipping_follows_eager_pytorch_and_grad_scaler(
    clip: dict[str, float], backend: Any
) -> None:
    model, peer = net(), net()
    limits: dict[str, Any] = {f"max_grad_{name}": limit for name, limit in clip.items()}
    # Adam would divide the noise in the gradient of a bias before a batch norm by its own size.
    mine, optimizer = (
        torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9) for m in (model, peer)
    )
    step = mpcompile.compile(
        model,
        loss,
        mine,
        batch(),
        policy=FULL_PRECISION,
        loss_scale=GATED,
        backend=backend,
        **limits,
    )
    scaler = scaler_of(GATED)
    for seed in range(6):
        if seed == 2:
            step(*bad(seed))
            assert not bool(step.applied)
            kept = copy.deepcopy(dict(peer.named_buffers()))
            eager(peer, optimizer, scaler, *bad(seed), **clip)
            for name, buffer in peer.named_buffers():
                buffer.copy_(kept[name])
            continue
        step(*batch(seed))
        eager(peer, optimizer, scaler, *batch(seed), **clip)
    assert (step.taken, step.skipped, step.loss_scale) == (5, 1, scaler.get_scale())
    exact = backend == "interpreter" and clip != CLIPS[0]
    for name, held in peer.state_dict().items():
        rtol, atol = (0.0, 0.0) if exact else (1e-5, 1e-7)
        torch.testing.assert_close(model.state_dict()[name], held, rtol=rtol, atol=atol)


def test_the_norm_of_the_gradients_can_be_logged() -> None:
    model, peer = net(), net()
    step = compiled(model, max_grad_norm=0.1)
    step(*batch())
    torch.autograd.backward(loss(peer, *batch()))
    norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
    torch.testing.assert_close(step.gradient_norm, norm, rtol=2e-3, atol=0)
    with pytest.raises(BadInput, match="no norm"):
        _ = compiled(net()).gradient_norm


@pytest.mark.parametrize(
    "wrong",
    [{"max_grad_norm": 0.0}, {"max_grad_value": -1.0}, {"max_grad_norm": 1.0, "max_grad_value": 1}],
)
def test_senseless_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        compiled(net(), **wrong)
