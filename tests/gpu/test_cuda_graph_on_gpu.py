"""The replayed step on a GPU: same numbers, no growth, fresh random numbers, a sound fall-back."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import TrainStep
from mpcompile.lower.cuda_graph import WARM_UP, CapturedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

F = nn.functional


@torch.library.custom_op("mpcompile_test::wait", mutates_args=())
def wait(x: torch.Tensor) -> torch.Tensor:
    """Return a copy, after the host has waited for the device: no capture allows that."""
    torch.cuda.synchronize()
    return x.clone()


@wait.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


wait.register_autograd(lambda _, gradient: gradient)


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0, waits: bool = False) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(64, 128), nn.BatchNorm1d(128)
        self.leave = nn.Linear(128, 8)
        self.dropout, self.waits = dropout, waits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(F.relu(self.norm(self.enter(x))), self.dropout, self.training)
        result: torch.Tensor = self.leave(wait(x) if self.waits else x)
        return result


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def made(rate: float = 1e-2, cuda_graph: bool = True, **options: Any) -> tuple[TrainStep, Net]:
    torch.manual_seed(0)
    model = Net(**options).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    step = mpcompile.compile(model, loss, optimizer, batch(0), cuda_graph=cuda_graph)
    return step, model


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 64, generator=generator).cuda()
    return x, torch.randint(0, 8, (32,), generator=generator).cuda()


def graph_of(step: TrainStep) -> CapturedStep:
    run = step._graphs(batch(0)).run
    assert isinstance(run, CapturedStep)
    return run


def test_a_replay_equals_a_plain_run_bit_for_bit() -> None:
    replayed, model = made()
    plain, twin = made(cuda_graph=False)
    for seed in range(WARM_UP + 6):
        bad = (batch(seed)[0] * float("inf"), batch(seed)[1])  # a step to skip, replayed too
        given = bad if seed == WARM_UP + 3 else batch(seed)
        assert torch.equal(replayed(*given), plain(*given)) or given is bad
    assert graph_of(replayed)._graph is not None
    assert (replayed.taken, replayed.skipped) == (plain.taken, plain.skipped) == (WARM_UP + 5, 1)
    assert replayed.loss_scale == plain.loss_scale
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_a_replay_follows_the_learning_rate() -> None:
    step, model = made()
    for seed in range(WARM_UP + 2):
        step(*batch(seed))
    before = model.leave.weight.detach().clone()
    step._optimizer.param_groups[0].update(lr=0.0)
    step(*batch(0))
    assert torch.equal(model.leave.weight.detach(), before)


def test_each_replay_draws_another_dropout_mask() -> None:
    step, _ = made(rate=0.0, dropout=0.5)
    losses = {float(step(*batch(0))) for _ in range(WARM_UP + 5)}
    assert len(losses) == WARM_UP + 5


def test_a_thousand_steps_take_no_more_memory() -> None:
    step, _ = made(dropout=0.1)
    for _ in range(WARM_UP + 10):
        step(*batch(0))
    given = batch(0)
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(1000):
        value = step(*given)
    del value
    assert torch.cuda.memory_allocated() <= allocated + 4096
    assert torch.cuda.memory_reserved() == reserved


def test_a_step_that_cannot_be_captured_runs_plainly(caplog: pytest.LogCaptureFixture) -> None:
    step, model = made(waits=True, dropout=0.5)
    with caplog.at_level(logging.WARNING, "mpcompile"):
        losses = [float(step(*batch(0))) for _ in range(WARM_UP + 4)]
    assert len([record for record in caplog.records if "CUDA graph" in record.message]) == 1
    assert step.taken == WARM_UP + 4
    assert len(set(losses)) == len(losses)  # the generator goes on after the broken capture
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert all(torch.isfinite(value).all() for value in model.parameters())
