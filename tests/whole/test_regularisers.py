"""Regularisers inside the loss: their gradient is that of the FP32 master."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile import LossScale, Precision

STRENGTH = 1e-6
TERMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "square sum": lambda w: w.square().sum(),
    "pow": lambda w: w.pow(2).sum(),
    "product": lambda w: (w * w).sum(),
    "norm squared": lambda w: torch.linalg.vector_norm(w) ** 2,
    "norm": lambda w: w.norm(),
    "mean": lambda w: w.square().mean(),
    "absolute": lambda w: w.abs().sum(),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        next(made.parameters()).mul_(1e-4)  # in FP16 a third of these would be subnormal numbers
    return made


def with_terms(term: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(model(x), y)
        return value + STRENGTH * torch.stack([term(p) for p in model.parameters()]).sum()

    return loss


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_a_regulariser_is_exact_and_does_not_underflow(
    name: str, backend: Any
) -> None:
    """With an input of zeros the weight of the first layer has no other gradient."""
    loss = with_terms(TERMS[name])
    made, peer = model(), model()
    x, y = torch.zeros(8, 16), torch.arange(8) % 4
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    step = mpcompile.compile(
        made, loss, optimizer, (x, y), loss_scale=LossScale.static(1.0), backend=backend
    )
    assert "0.weight" in step.step.working
    found = step.gradients(x, y)
    torch.autograd.backward(loss(peer.double(), x.double(), y))
    expected = dict(peer.named_parameters())["0.weight"].grad
    assert expected is not None
    torch.testing.assert_close(found["0.weight"].double(), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", TERMS)
def test_the_step_follows_eager_fp32(name: str) -> None:
    loss = with_terms(TERMS[name])
    made, peer = model(), model()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 16, generator=generator), torch.arange(8) % 4
    step = mpcompile.compile(made, loss, torch.optim.SGD(made.parameters(), lr=0.1), (x, y))
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        expected = loss(peer, x, y)
        torch.autograd.backward(expected)
        optimizer.step()
        torch.testing.assert_close(step(x, y), expected.detach(), rtol=1e-3, atol=1e-4)
    for left, right in zip(made.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-4)


def test_arithmetic_on_weights_alone_is_planned_in_fp32_and_views_are_not() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.other = (nn.Parameter(torch.randn(16, 16)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = self.weight + 0.5 * self.other
            return (x @ mixed.t()) @ self.other.t()

    made = Gated()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    step = mpcompile.compile(
        made, lambda m, x: m(x).square().mean(), optimizer, (torch.randn(8, 16),)
    )
    decisions = {decision.op: decision for decision in step.plan.decisions}
    assert decisions["add"].computes is Precision.FP32
    assert decisions["mul"].computes is Precision.FP32
    assert "weights alone" in decisions["add"].reason
    assert decisions["matmul"].computes is Precision.FP16
    assert "other" in step.step.working
