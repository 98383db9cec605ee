"""The model outside training: in FP32 on the masters, and in mixed precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from programs.small_step import batch, compiled, net
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_mixed_precision_is_close_to_fp32_on_the_masters(backend: Any) -> None:
    model = net()
    step = compiled(model, backend=backend)
    for seed in range(3):
        step(*batch(seed))
    x, _ = batch(9)
    exact = copy.deepcopy(model).eval()(x).detach()
    mixed = step.forward(x)
    assert mixed.dtype is torch.float32
    assert not mixed.requires_grad
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=2e-2, atol=5e-3)
    assert all(module.training for module in model.modules())
    x = torch.randn(5, 8)  # another shape is another graph
    torch.testing.assert_close(
        step.forward(x), copy.deepcopy(model).eval()(x).detach(), rtol=2e-2, atol=5e-3
    )
    assert len(step._forward._made) == 2


def test_in_fp32_forward_equals_the_model() -> None:
    model = net()
    step = compiled(model, policy=FULL_PRECISION)
    step(*batch())
    x, _ = batch(9)
    assert torch.equal(step.forward(x), copy.deepcopy(model).eval()(x))
    before = model.state_dict()["norm.running_mean"].clone()
    step(*batch(1))
    assert torch.equal(step.forward(x), copy.deepcopy(model).eval()(x))
    assert not torch.equal(model.state_dict()["norm.running_mean"], before)


def test_it_reads_the_working_copies_and_follows_written_weights() -> None:
    model, other = net(), net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.25)
    step, fresh = compiled(model), compiled(other)
    x, _ = batch(9)
    first = step.forward(x)
    model.load_state_dict(other.state_dict())
    assert torch.equal(step.forward(x), fresh.forward(x))
    assert not torch.equal(step.forward(x), first)
    # A copy that is not its master's shows where it is read.
    step._state["head.weight.working"].zero_()
    assert torch.equal(step.forward(x), other.head.bias.detach().half().float().expand(12, 4))


def test_a_model_in_fp32_trains_and_evaluates_in_turn() -> None:
    model, peer = net(), net()
    step, other = compiled(model), compiled(peer)
    for seed in range(3):
        step(*batch(seed))
        model.eval()
        model(batch(7)[0])
        step.forward(batch(8)[0])
        model.train()
        other(*batch(seed))
    for left, right in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)


def test_dropout_is_off_and_any_structure_comes_back() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            hidden = nn.functional.dropout(self.one(x), 0.5, self.training)
            return {"hidden": hidden, "shape": (3, None), "x": x}

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(
        model, lambda m, x: m(x)["hidden"].square().mean(), optimizer, (torch.ones(4, 8),)
    )
    made = step.forward(torch.ones(4, 8))
    assert made["shape"] == (3, None)
    assert torch.equal(made["x"], torch.ones(4, 8))
    assert torch.equal(made["hidden"], step.forward(torch.ones(4, 8))["hidden"])


def test_inputs_that_do_not_fit_the_model_are_refused() -> None:
    step = compiled(net())
    with pytest.raises(BadInput, match="RuntimeError"):
        step.forward(torch.ones(4, 9))
    with pytest.raises(BadInput, match="TypeError"):
        step.forward([torch.ones(4, 8)])
    with pytest.raises(BadInput, match="the batch holds an object of type object"):
        step.forward(object())
