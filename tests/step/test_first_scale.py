"""The loss scale of the first step is that of the first batch's gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets.small_models import CUTS, workload
from torch import Tensor, nn

import mpcompile
from mpcompile import FULL_PRECISION, LossScale, Policy, Precision
from mpcompile.numerics.calibration import measure_ranges
from mpcompile.numerics.gradient_exponents import gradients_in_fp16, joined
from mpcompile.pipeline import transform
from mpcompile.program.capture import capture


def net(factor: float) -> tuple[nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor], object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = torch.randn(16, 8), torch.randint(4, (16,))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return factor * nn.functional.cross_entropy(model(x), y)

    return model, optimizer, batch, loss


@pytest.mark.parametrize(
    ("largest", "initial"),
    [
        (0.0, 2.0**16),
        (float("inf"), 2.0**16),
        (float("nan"), 2.0**16),
        (0.2, 2.0**16),  # 2^16 leaves two bits and is enough
        (0.5, 2.0**14),
        (1000.0, 2.0**4),
        (1e6, 2.0**-6),
        (1e20, 2.0**-24),  # the floor
        (2.0**-10, 2.0**17),  # 2^23 fits, with six bits less
        (1e-20, 2.0**24),  # the ceiling
    ],
)
def test_the_first_scale_for_gradients_of_a_size(largest: float, initial: float) -> None:
    assert LossScale.auto().for_gradients(largest).initial == initial


@pytest.mark.parametrize("name", CUTS)
def test_it_is_the_one_that_calibration_recommends(name: str) -> None:
    subject = workload(name, "cpu")
    subject = replace(subject, data=None)
    made = transform(subject)
    forward = capture(subject)
    measured = measure_ranges(subject, forward, 1)
    largest = joined(gradients_in_fp16(forward, made.plan, measured)).largest_finite
    assert made.choices.scale == LossScale.auto().for_gradients(largest)


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1.0, 1e3, 1e6, 1e9])
def test_no_step_is_lost_and_none_of_the_gradient(factor: float) -> None:
    model, optimizer, batch, loss = net(factor)
    step = mpcompile.compile(model, loss, optimizer, batch)  # type: ignore[arg-type]
    gradients = step.gradients(*batch)
    first = step.loss_scale
    step(*batch)
    assert (step.taken, step.skipped, step.loss_scale) == (1, 0, first)
    loss(model, *batch).backward()  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            gradients[name] / factor, parameter.grad / factor, atol=3e-4, rtol=3e-3
        )


def test_grad_scalers_numbers_are_there_for_who_asks() -> None:
    model, optimizer, batch, loss = net(1e6)
    step = mpcompile.compile(model, loss, optimizer, batch, loss_scale=LossScale())  # type: ignore[arg-type]
    assert step.loss_scale == 2.0**16
    step(*batch)
    assert (step.taken, step.skipped, step.loss_scale) == (0, 1, 2.0**15)


@pytest.mark.parametrize(
    "policy", [FULL_PRECISION, Policy(precision=Precision.BF16)], ids=["fp32", "bf16"]
)
def test_other_formats_need_none(policy: Policy) -> None:
    model, optimizer, batch, loss = net(1e6)
    step = mpcompile.compile(model, loss, optimizer, batch, policy=policy)  # type: ignore[arg-type]
    assert step.scaler_state() == {}
