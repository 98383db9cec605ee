"""Updates over several micro-batches, against eager PyTorch with GradScaler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.scaler import GATED, bad, scaler_of
from programs.small_step import Net, batch, loss, net

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, TrainStep
from mpcompile.step.whole_step import whole_step


def pair(**options: Any) -> tuple[TrainStep, Net, Net, torch.optim.Optimizer]:
    """Return a compiled step, its model, and an eager twin with its optimizer."""
    model, peer = net(), net()
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9) for m in (model, peer))
    return mpcompile.compile(model, loss, mine, batch(), **options), model, peer, theirs


def eager(
    model: Net, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *batches: Any
) -> None:
    optimizer.zero_grad()
    for given in batches:
        torch.autograd.backward(scaler.scale(loss(model, *given) / len(batches)))
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_it_is_the_eager_loop_over_the_mean_loss(count: int, backend: Any) -> None:
    """If the mean is exact, the weights are equal to the last bit."""
    step, model, peer, optimizer = pair(
        policy=FULL_PRECISION, loss_scale=GATED, accumulate=count, backend=backend
    )
    scaler = scaler_of(GATED)
    for update in range(4):
        batches = [batch(update * count + part) for part in range(count)]
        for position, given in enumerate(batches):
            step(*given)
            assert bool(step.applied) == (position == count - 1)
        eager(peer, optimizer, scaler, *batches)
    assert (step.taken, step.skipped, step.loss_scale) == (4, 0, scaler.get_scale())
    exact = count != 3 and backend == "interpreter"
    for name, held in peer.state_dict().items():
        rtol, atol = (0.0, 0.0) if exact else (1e-5, 1e-6)
        torch.testing.assert_close(model.state_dict()[name], held, rtol=rtol, atol=atol)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_micro_batch_skips_the_update_and_leaves_no_trace(place: int) -> None:
    """The statistics of the batch norm, which good micro-batches have written, are restored too."""
    step, model, _, _ = pair(accumulate=3, loss_scale=GATED)
    for seed in range(3):
        step(*batch(seed))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for part in range(3):
        step(*(bad(part) if part == place else batch(part)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not bool(step.applied)
    assert (step.taken, step.skipped, step.loss_scale) == (1, 1, GATED.initial / 2)
    for seed in range(3):
        step(*batch(seed))
    assert (step.taken, step.skipped) == (2, 1)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_gradients_add_up_in_fp32() -> None:
    """65504 is the largest FP16 number: three scaled gradients of 40,000 add up beyond it."""

    def total(model: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(x).sum()
        return value

    model = torch.nn.Linear(8, 8, bias=False)
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scale = mpcompile.LossScale.static(1000.0)
    x = torch.ones(8, 8) * 5
    step = mpcompile.compile(model, total, optimizer, (x,), loss_scale=scale, accumulate=3)
    assert step.step.slots["grad.weight"].dtype is torch.float16
    for _ in range(3):
        step(x)
    assert bool(step.applied)
    torch.testing.assert_close(start - model.weight.detach(), torch.full((8, 8), 40.0))


def test_clipping_and_schedules_see_updates_only() -> None:
    step, model, peer, optimizer = pair(policy=FULL_PRECISION, accumulate=2, max_grad_norm=0.2)
    mine, theirs = (
        torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (step._optimizer, optimizer)
    )
    step.scheduler(mine)
    for update in range(3):
        optimizer.zero_grad()
        for part in range(2):
            given = batch(2 * update + part)
            step(*given)
            torch.autograd.backward(loss(peer, *given) / 2)
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.2)
        optimizer.step()
        theirs.step()
    step.settle()
    assert mine.get_last_lr() == theirs.get_last_lr()
    for name, held in peer.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], held, rtol=1e-5, atol=1e-7)


def test_the_whole_step_is_the_last_micro_batch_with_the_update() -> None:
    step, _, _, _ = pair(policy=FULL_PRECISION, accumulate=2)
    step(*batch(0))
    whole = whole_step(step.step)
    slots = [node.meta["slot"] for node in whole.graph.find_nodes(op="placeholder")]
    given = dict(zip(("batch.0", "batch.1"), batch(1), strict=True))
    step._options.hand_over()
    values = [given[name] if name in given else step._state[name].clone() for name in slots]
    named = dict(zip(whole.graph.output_node().meta["slots"], whole(*values), strict=True))
    step(*batch(1))
    for name, value in named.items():
        if name != "loss":
            torch.testing.assert_close(value, step._state[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_senseless_number_of_micro_batches_is_refused(count: Any) -> None:
    with pytest.raises(BadInput, match="micro-batches"):
        pair(accumulate=count)
