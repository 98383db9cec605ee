"""A graph of Dynamo whose form without writes would train otherwise is left to PyTorch."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from mpcompile.pieces.conversion_proof import difference


class Net(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("center", torch.zeros(16))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.between(self, torch.tanh(self.a(x)) * 3))
        return result


def clamped(_: Net, hidden: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden.clamp_(-0.5, 0.5)
    return hidden


def partly_clamped(_: Net, hidden: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden[:, :4].clamp_(-0.1, 0.1)
    return hidden


def by_data(_: Net, hidden: torch.Tensor) -> torch.Tensor:
    hidden.data.clamp_(-0.5, 0.5)
    return hidden


def centered(net: Any, hidden: torch.Tensor) -> torch.Tensor:
    center: torch.Tensor = net.center
    with torch.no_grad():
        center.mul_(0.5).add_(hidden.mean(0))
    return hidden - center


def dropped(_: Net, hidden: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(hidden, 0.5)


def trained(between: Any, backend: str = "interpreter") -> tuple[list[Any], list[Any]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    mine = Net(between)
    theirs = copy.deepcopy(mine)
    options: Any = {"precision": "bf16", "backend": backend}
    compiled: Any = torch.compile(mine, backend="mpcompile", options=options)
    for seed in range(2):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
        for model, called in ((mine, compiled), (theirs, theirs)):
            model.zero_grad()
            torch.manual_seed(seed)
            called(x).square().mean().backward()
    sides: list[Any] = [mine, theirs]
    one, other = ([*(p.grad for p in model.parameters()), model.center] for model in sides)
    return one, other


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
@pytest.mark.parametrize("between", [clamped, partly_clamped, by_data])
def test_a_write_that_lets_gradients_pass_is_left_to_pytorch(
    between: Any, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mpcompile"):
        mine, theirs = trained(between, backend)
    assert "stays in FP32, because its form without writes is not faithful" in caplog.text
    assert all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize("between", [centered, dropped])
def test_a_faithful_graph_runs_in_16_bits(between: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mpcompile"):
        mine, theirs = trained(between)
    assert "stays in FP32" not in caplog.text
    assert "was not compared" not in caplog.text
    assert not all(map(torch.equal, mine, theirs))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.isclose(one, other, rtol=0.1, atol=0.02).all()


def test_the_random_state_and_the_inputs_stay() -> None:
    x, weight = torch.randn(3, 4), nn.Parameter(torch.randn(4))

    def writes(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        x.add_(1)
        return [torch.rand_like(x) * x * weight]

    before, state = x.clone(), torch.get_rng_state()
    assert difference(writes, writes, [x, weight]) == ""
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert weight.grad is None
    other = difference(writes, lambda x, weight: [torch.rand_like(x) * x * weight], [x, weight])
    assert other == "a result (0)"
