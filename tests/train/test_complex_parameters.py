"""A model with complex parameters trains as in eager PyTorch; the step holds their FP32 parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import mpcompile
from mpcompile import FULL_PRECISION, LossScale, TrainStep

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.001, centered=True),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.01),
}
SCALE = 2.0**8


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: it weighs frequencies by complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(4, 4, 5, dtype=torch.complex64))
        self.up, self.down = nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        waves = torch.fft.rfft(self.up(x).transpose(1, 2).float())[..., :5]
        mixed = torch.einsum("bix,iox->box", waves, self.weight)
        hidden = torch.fft.irfft(mixed, n=x.shape[1]).transpose(1, 2)
        result: torch.Tensor = self.down(functional.gelu(hidden))
        return result


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = (model(x) - y).square().mean()
    return value


def made() -> tuple[Spectral, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return Spectral(), (torch.randn(8, 16, 1), torch.randn(8, 16, 1))


def compiled(model: nn.Module, batch: Any, kind: str = "adamw", **options: Any) -> TrainStep:
    optimizer = OPTIMIZERS[kind](model.parameters())
    return mpcompile.compile(model, loss, optimizer, batch, **options)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_trains_as_in_eager_pytorch(kind: str) -> None:
    model, batch = made()
    eager = copy.deepcopy(model)
    optimizer = OPTIMIZERS[kind](eager.parameters())
    mine = OPTIMIZERS[kind](model.parameters())
    step = mpcompile.compile(model, loss, mine, batch, policy=FULL_PRECISION)
    for _ in range(5):
        theirs = loss(eager, *batch)
        optimizer.zero_grad()
        theirs.backward()
        optimizer.step()
        torch.testing.assert_close(step(*batch), theirs.detach())
    assert model.weight.dtype is torch.complex64
    torch.testing.assert_close(model.weight, eager.weight)
    for key, value in optimizer.state[eager.weight].items():
        torch.testing.assert_close(mine.state[model.weight][key], value, rtol=1e-5, atol=1e-6)


def test_gradients_and_evaluation_are_complex_where_the_model_is() -> None:
    model, batch = made()
    eager = copy.deepcopy(model)
    loss(eager, *batch).backward()
    step = compiled(model, batch, policy=FULL_PRECISION)
    torch.testing.assert_close(step.gradients(*batch)["weight"], eager.weight.grad)
    torch.testing.assert_close(step.forward(batch[0]), eager(batch[0]).detach())
    with torch.no_grad():
        model.weight.mul_(2.0j)  # a write of the user's
        eager.weight.mul_(2.0j)
    torch.testing.assert_close(step(*batch), loss(eager, *batch).detach())


def test_in_16_bits_it_is_as_near_to_fp32_as_autocast() -> None:
    model, batch = made()
    exact, peer = copy.deepcopy(model), copy.deepcopy(model)
    loss(exact, *batch).backward()
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(peer, *batch)
    (value * SCALE).backward()
    step = compiled(model, batch, loss_scale=LossScale.static(SCALE))
    found = step.gradients(*batch)
    for name, true in exact.named_parameters():
        other = dict(peer.named_parameters())[name].grad
        assert true.grad is not None
        assert other is not None
        error = (found[name] - true.grad).abs().max()
        assert error <= 3 * (other / SCALE - true.grad).abs().max() + 2e-4 * true.grad.abs().max()


def test_a_checkpoint_and_a_state_dict_resume(tmp_path: Path) -> None:
    model, batch = made()
    step = compiled(model, batch)
    step(*batch)
    step.save(tmp_path / "run")
    fresh = Spectral()
    resumed = compiled(fresh, batch)
    resumed.load(tmp_path / "run")
    assert torch.equal(model.weight, fresh.weight)
    assert torch.equal(step(*batch), resumed(*batch))
    assert torch.equal(model.weight, fresh.weight)
    plain = Spectral()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.weight, model.weight)


def test_it_can_be_frozen_and_be_of_another_shape_of_batch() -> None:
    model, batch = made()
    eager = copy.deepcopy(model)
    step = compiled(model, batch, "sgd", policy=FULL_PRECISION)
    optimizer = OPTIMIZERS["sgd"](eager.parameters())
    small = tuple(value[:3] for value in batch)
    for data, trains in ((batch, True), (small, False), (small, True)):
        for one in (model, eager):
            one.weight.requires_grad_(trains)
        optimizer.zero_grad()
        loss(eager, *data).backward()
        optimizer.step()
        step(*data)
        torch.testing.assert_close(model.weight, eager.weight)


def test_in_pieces_it_trains_as_in_eager_pytorch() -> None:
    model, batch = made()
    eager = copy.deepcopy(model)

    def branches(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        value = loss(model, x, y)
        return value * 2 if value.item() > 100 else value

    optimizer, mine = (OPTIMIZERS["adamw"](one.parameters()) for one in (eager, model))
    step = mpcompile.compile(model, branches, mine, batch, policy=FULL_PRECISION)
    assert step.captured.in_pieces is not None
    for _ in range(3):
        theirs = branches(eager, *batch)
        optimizer.zero_grad()
        theirs.backward()
        optimizer.step()
        torch.testing.assert_close(step(*batch), theirs.detach())
    torch.testing.assert_close(model.weight, eager.weight)
    assert step.gradients(*batch)["weight"].dtype is torch.complex64
