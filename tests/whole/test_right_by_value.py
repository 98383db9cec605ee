"""Numbers that fit FP16 by range and not by digits: at least as near to FP32 as autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from programs.values import BETWEEN, PROGRAMS, Program, rotary
from torch import Tensor, nn

import mpcompile
from mpcompile import Level, LossScale, Policy
from mpcompile.plan.sensitivity import NarrowedArgument

Loss = Callable[..., Tensor]

ROUNDING = 2.0**-9
"""Of the largest result: two roundings to FP16 in each of the layers behind the features."""


def with_result(model: nn.Module, *batch: Tensor) -> tuple[Tensor, Tensor]:
    result = model(*batch)
    return result.square().mean(), result


def errors(make: Program, policy: Policy) -> tuple[float, float]:
    """Return the errors of ours and of eager autocast, over the largest result in FP32."""
    torch.manual_seed(0)
    model, batch = make()
    with torch.no_grad():
        exact = model(*batch)
        with torch.autocast("cpu", dtype=torch.float16):
            peer = model(*batch).float()
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.0)
    step = mpcompile.compile(mine, with_result, optimizer, batch, policy=policy)
    _, ours = step(*batch)

    def error(result: Tensor) -> float:
        return float((result - exact).abs().max() / exact.abs().max())

    return error(ours), error(peer)


@pytest.mark.parametrize("level", [Level.PAPER, Level.CAREFUL])
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_sensitive_program_is_right(name: str, level: Level) -> None:
    ours, peer = errors(PROGRAMS[name], Policy(level))
    assert ours <= ROUNDING
    assert ours <= 3 * peer
    if name in BETWEEN:
        assert peer > ROUNDING, "autocast is right here too, so this program shows nothing"


@pytest.mark.parametrize("start", [0, 500, 2048, 8000, 100_000, 1_000_000])
@pytest.mark.parametrize("level", [Level.PAPER, Level.TENSOR_CORES_ONLY])
def test_rotary_positions_are_right_however_far(start: int, level: Level) -> None:
    ours, peer = errors(lambda: rotary(start), Policy(level))
    assert ours <= ROUNDING
    assert ours <= 3 * peer


def test_a_level_that_narrows_a_layer_before_a_sine_warns() -> None:
    with pytest.warns(NarrowedArgument, match="linear runs in f16, sin reads its result, and 16"):
        errors(PROGRAMS["waves_of_a_layer"], Policy(Level.TENSOR_CORES_ONLY))


LOSSES: dict[str, Loss] = {
    "mse_loss": functional.mse_loss,
    "l1_loss": functional.l1_loss,
    "smooth_l1_loss": functional.smooth_l1_loss,
    "huber_loss": functional.huber_loss,
    "a square": lambda p, y: ((p - y) ** 2).mean(),
    "a product": lambda p, y: ((p - y) * (p - y)).mean(),
    "a magnitude": lambda p, y: (p - y).abs().mean(),
    "a broadcast": lambda p, y: functional.mse_loss(p, y[:1].expand(p.shape)),
}


def regression(size: float) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    last = nn.Linear(32, 1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), last)
    x = torch.randn(64, 8)
    with torch.no_grad():
        y = size * (1 + 0.01 * torch.randn(64, 1))
        last.bias.fill_(min(size, 2000.0))
    return model, (x, y)


@pytest.mark.parametrize("size", [1.0, 2000.0, 2e5, 1e7])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_target_of_the_batch_is_not_rounded(name: str, size: float) -> None:
    model, batch = regression(size)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return LOSSES[name](model(x), y)

    def narrow(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            prediction = model(x)
        return LOSSES[name](prediction.float(), y)

    with torch.no_grad():
        # The layers round the prediction; everything behind them must not.
        expected = narrow(model, *batch)
    step = mpcompile.compile(
        model, loss, torch.optim.SGD(model.parameters(), lr=0.0), batch, loss_scale=LossScale.none()
    )
    torch.testing.assert_close(step(*batch), expected, rtol=1e-5, atol=0.0)


def skipped(model: nn.Module, loss: Loss, batch: tuple[Tensor, ...], calls: int = 40) -> list[int]:
    """Return the calls that were skipped."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = mpcompile.compile(model, loss, optimizer, batch)
    found = []
    for call in range(calls):
        before = step.skipped
        step(*batch)
        if step.skipped > before:
            found.append(call)
    return found


def test_a_gradient_beyond_fp16_lowers_the_scale_below_one() -> None:
    model, batch = regression(2e5)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(model(x), y)

    calls = skipped(model, loss, batch)
    assert calls == list(range(len(calls)))
    assert len(calls) < 30


def test_confident_wrong_answers_behind_a_sigmoid_are_trained() -> None:
    torch.manual_seed(0)
    last = nn.Linear(16, 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), last)
    with torch.no_grad():
        last.bias.fill_(12.0)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy(torch.sigmoid(model(x)), y)

    assert all(call < 10 for call in skipped(model, loss, (torch.randn(32, 8), torch.zeros(32, 1))))


def test_a_gram_matrix_of_features_is_finite() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 32, 3, padding=1)

    def loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        feature = model(x).relu().flatten(2) * 10
        return functional.mse_loss(feature @ feature.transpose(1, 2) / feature.shape[-1], target)

    batch = (torch.randn(2, 3, 64, 64), torch.rand(2, 32, 32))
    assert all(call < 10 for call in skipped(model, loss, batch))


def test_a_router_chooses_the_experts_that_autocast_chooses() -> None:
    torch.manual_seed(0)
    router = nn.Linear(64, 8)
    x = torch.randn(512, 64)

    def loss(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        share = functional.softmax(model(x), dim=-1, dtype=torch.float)
        weight, chosen = share.topk(2, -1)
        return weight.square().mean(), chosen

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        _, expected = loss(router, x)
    step = mpcompile.compile(router, loss, torch.optim.SGD(router.parameters(), lr=0.0), (x,))
    assert torch.equal(step(x)[1], expected)
