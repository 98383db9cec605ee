"""A weight of tiny numbers is a factor in FP32, as under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import Policy, Precision
from mpcompile.pipeline import transform
from mpcompile.plan.plan import Plan
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices


class Branch(nn.Module):
    """A residual branch with a scale of its own, as in LayerScale."""

    def __init__(self, scale: float, weight: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(16, 16), nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.full((1, 16), scale))
        with torch.no_grad():
            self.enter.weight.mul_(weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.enter(x))
        result: Tensor = self.leave(hidden * self.scale.squeeze(0))
        return result


def loss(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = (model(x) * 100.0).square().mean()
    return result


def plan(model: nn.Module, precision: Precision = Precision.FP16) -> Plan:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    work = Workload(model, (torch.randn(8, 16),), loss, optimizer)
    return transform(work, Choices(policy=Policy(precision=precision))).plan


def computes(found: Plan, kind: str) -> set[Precision]:
    return {item.computes for item in found.decisions if item.kind == kind}


@pytest.mark.parametrize(
    ("scale", "precision"),
    [
        (1e-6, Precision.FP32),
        (1e-5, Precision.FP32),
        (1e-4, Precision.FP16),
        (0.1, Precision.FP16),
        (0.0, Precision.FP16),  # zero is exact
        (-1e-6, Precision.FP32),
    ],
)
def test_a_product_with_tiny_numbers_is_fp32(scale: float, precision: Precision) -> None:
    found = plan(Branch(scale))
    [product] = [item for item in found.decisions if item.op == "mul"]
    assert product.computes is precision
    assert computes(found, "linear") == {Precision.FP16}
    if precision is Precision.FP32:
        assert "keeps few digits" in product.reason


def test_bf16_keeps_as_many_digits_of_tiny_numbers_as_of_others() -> None:
    found = plan(Branch(1e-6), Precision.BF16)
    [product] = [item for item in found.decisions if item.op == "mul"]
    assert product.computes is Precision.BF16


@pytest.mark.parametrize(("weight", "narrow"), [(1e-9, 1), (1e-4, 2), (1.0, 2)])
def test_a_layer_whose_weights_vanish_is_fp32(weight: float, narrow: int) -> None:
    found = plan(Branch(1.0, weight))
    layers = [item.computes for item in found.decisions if item.kind == "linear"]
    assert layers.count(Precision.FP16) == narrow


@pytest.mark.parametrize(("scale", "weight"), [(1e-6, 1.0), (1.0, 1e-9)])
def test_the_step_is_nearer_to_fp32_than_autocast(scale: float, weight: float) -> None:
    """A tiny activation in front of a layer is rounded by both."""
    model = Branch(scale, weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(8, 16)
    step = mpcompile.compile(model, loss, optimizer, (x,))
    ours, value = step.gradients(x), float(step(x))
    exact = gradients(model, x)
    with torch.autocast("cpu", torch.float16):
        peers = gradients(model, x)
    assert abs(value / float(loss(model, x)) - 1.0) < 2.0**-9
    for name, true in exact.items():
        error, peer = ((found[name] - true).norm() / true.norm() for found in (ours, peers))
        assert float(error) < max(2.0**-8, 1.5 * float(peer)), name


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(model, x), weights), strict=True))
