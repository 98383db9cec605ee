"""Ten skipped steps in a row are said once, with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import LossScale, SkippedSteps

BATCH = (torch.randn(4, 8),)


def said(
    loss: Callable[..., Tensor], calls: int, batch: tuple[Tensor, ...] = BATCH, **options: object
) -> list[str]:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, loss, optimizer, BATCH, **options)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(calls):
            step(*batch)
    return [str(item.message) for item in found if item.category is SkippedSteps]


def plain(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = model(x).square().mean()
    return result


def steep(model: nn.Module, x: Tensor) -> Tensor:
    """Return a loss that is finite and whose gradient is not."""
    result: Tensor = (model(x) * 0).abs().sqrt().sum()
    return result


def test_a_loss_that_is_not_finite_is_said_once() -> None:
    batch = (torch.full((4, 8), float("inf")),)
    (text,) = said(plain, 35, batch)
    assert text.startswith("the last 10 steps were skipped, because the loss is ")
    assert "mpcompile check" in text


def test_a_gradient_that_is_not_finite_is_said_by_name() -> None:
    (text,) = said(steep, 10, loss_scale=LossScale.static(1.0))
    assert "the gradient of weight is not finite" in text


@pytest.mark.parametrize("calls", [9, 40])
def test_steps_that_train_are_not_said(calls: int) -> None:
    assert said(plain, calls) == []


def test_nine_are_not_said() -> None:
    assert said(steep, 9, loss_scale=LossScale.static(1.0)) == []


def test_without_a_loss_scale_nothing_is_skipped() -> None:
    assert said(steep, 20, loss_scale=LossScale.none()) == []


def test_the_random_state_stays() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return steep(model, nn.functional.dropout(x))

    torch.manual_seed(0)
    said(loss, 10, loss_scale=LossScale.static(1.0))
    after = torch.rand(())
    torch.manual_seed(0)
    said(loss, 9, loss_scale=LossScale.static(1.0))
    nn.functional.dropout(BATCH[0])
    assert torch.equal(torch.rand(()), after)
