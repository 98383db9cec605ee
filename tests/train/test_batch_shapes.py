"""Batches with other shapes than the example: the last of an epoch, another length."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from programs.graphs import Tied, cross_entropy
from programs.small_step import batch, compiled, loss, net
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, LossScale, Precision


def some(seed: int, count: int) -> tuple[torch.Tensor, ...]:
    return tuple(value[:count] for value in batch(seed))


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_smaller_last_batch_trains_the_same_weights(backend: Any, accumulate: int) -> None:
    model, peer = net(), net()
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9) for m in (model, peer))
    step = mpcompile.compile(
        model, loss, mine, batch(), policy=FULL_PRECISION, backend=backend, accumulate=accumulate
    )
    for seed in range(6):
        given = some(seed, 5 if seed % 3 == 2 else 12)
        expected = loss(peer, *given)
        torch.testing.assert_close(step(*given), expected.detach())
        torch.autograd.backward(expected / accumulate)
        if seed % accumulate == accumulate - 1:
            theirs.step()
            theirs.zero_grad()
    for name, held in peer.state_dict().items():
        close = (0.0, 0.0) if backend == "interpreter" else (1e-5, 1e-6)
        torch.testing.assert_close(model.state_dict()[name], held, rtol=close[0], atol=close[1])


def test_a_new_shape_makes_one_graph_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    step = compiled(net())
    with caplog.at_level(logging.INFO, "mpcompile"):
        for count in (12, 5, 12, 5, 7):
            step(*some(0, count))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "compiled graph 2 of the step for batches of shapes [5, 8], [5]",
        "compiled graph 3 of the step for batches of shapes [7, 8], [7]",
    ]
    assert step.taken + step.skipped == 5


def test_a_new_shape_gives_the_numbers_of_a_step_of_that_shape() -> None:
    """Mixed precision has the same plan, working copies and scale too."""
    model, peer = net(), net()
    step, other = (
        compiled(model),
        mpcompile.compile(peer, loss, torch.optim.AdamW(peer.parameters(), lr=1e-2), some(0, 5)),
    )
    for seed in range(4):
        assert torch.equal(step(*some(seed, 5)), other(*some(seed, 5)))
    for left, right in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)
    assert {d.op: d.stores for d in step.plan.decisions} == {
        d.op: d.stores for d in other.plan.decisions
    }


def test_decisions_of_a_given_plan_hold_for_every_shape() -> None:
    plan = compiled(net()).plan
    wide = tuple(
        replace(d, computes=Precision.FP32, stores=Precision.FP32) if d.kind == "linear" else d
        for d in plan.decisions
    )
    step = compiled(net(), plan=replace(plan, decisions=wide))
    step(*some(0, 5))
    graph = step.graph_of(*some(0, 5))
    assert graph is not step.step
    assert graph.working == step.step.working == set()


def test_a_skip_and_the_statistics_of_a_batch_norm() -> None:
    model = net()
    step = compiled(model, loss_scale=LossScale())
    step(*some(0, 5))
    before = copy.deepcopy(model.state_dict())
    x, y = some(1, 5)
    step(x * float("nan"), y)
    assert not bool(step.applied)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_new_shape_is_captured_in_the_present_mode_of_the_model() -> None:
    model, peer = net(), net()
    step = compiled(model, policy=FULL_PRECISION)
    model.eval()
    expected = loss(peer.eval(), *some(0, 5)).detach()
    assert torch.equal(step(*some(0, 5)), expected)
    assert not any(module.training for module in model.modules())


def test_joined_and_padded_weights_are_read_in_place() -> None:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x, y = torch.randint(0, 10, (6,)), torch.randint(0, 10, (6,))
    step = mpcompile.compile(model, cross_entropy, optimizer, (x, y))
    step(x, y)
    gradients = step.gradients(x[:3], y[:3])
    assert set(gradients) == {name for name, _ in model.named_parameters()}


def test_a_batch_that_does_not_fit_the_program_is_refused() -> None:
    step = compiled(net())
    x, y = batch()
    with pytest.raises(
        BadInput, match=r"raises .* on the example batch of shapes \[11, 8\], \[12\]"
    ):
        step(x[1:], y)
    assert torch.isfinite(step(x, y))


def test_auxiliary_results_have_the_new_shape() -> None:
    def both(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), (logits, x.shape[0])

    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step = mpcompile.compile(model, both, optimizer, batch())
    _, (logits, count) = step(*some(0, 5))
    assert logits.shape == (5, 4)
    assert count == 5


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_a_batch_may_be_parts_of_larger_tensors_or_transposed(backend: Any) -> None:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x).reshape(-1, 3), y.reshape(-1))

    model = nn.Linear(4, 3)
    x, y = torch.randn(2, 16, 4)[:, :8], torch.randint(0, 3, (2, 16))[:, :8]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options: dict[str, Any] = {"policy": FULL_PRECISION, "backend": backend}
    step = mpcompile.compile(model, loss, optimizer, (x, y), **options)
    turned = y.contiguous().t().contiguous().t()
    expected = loss(model, x, y).detach()
    for labels in (y, y.contiguous(), turned):
        torch.testing.assert_close(step(x, labels), expected)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    made = mpcompile.compile(
        wide,
        lambda model, x: model(x).square().mean(),
        torch.optim.SGD(wide.parameters(), lr=0.0),
        (x.contiguous(),),
        **options,
    )
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        torch.testing.assert_close(made.forward(given), wide(given).detach())
