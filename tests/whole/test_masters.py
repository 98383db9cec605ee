"""Models that are in 16 bits already train with FP32 masters, as the program is written."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import mpcompile
from mpcompile import FULL_PRECISION, BadInput

NARROW = (torch.float16, torch.bfloat16)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.words.weight
        self.norm = nn.LayerNorm(8)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.norm(self.words(words)))
        return result


def tied_loss(model: nn.Module, words: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(words).flatten(0, 1), words.flatten())


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 8), torch.arange(size) % 4


def with_masters(model: nn.Module, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> Any:
    """Return the loss of an FP32 model, computed as its 16-bit twin computes it."""
    weights = {name: value.to(dtype) for name, value in model.named_parameters()}
    result = torch.func.functional_call(model, weights, (x.to(dtype),))
    return functional.cross_entropy(result, y).float()


@pytest.mark.parametrize("dtype", NARROW)
def test_it_trains_like_eager_pytorch_with_masters(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, data = mlp().to(dtype), batch()
    eager = copy.deepcopy(model).float()
    optimizer = torch.optim.SGD(eager.parameters(), lr=0.1)
    mine = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, loss, mine, data, policy=FULL_PRECISION)
    unit = torch.finfo(dtype).eps  # ops in 16 bits are decomposed and round in other places
    for _ in range(5):
        theirs = with_masters(eager, *data, dtype)
        theirs.backward()
        torch.testing.assert_close(step(*data), theirs.detach(), rtol=2 * unit, atol=0)
        optimizer.step()
        optimizer.zero_grad()
    for ours, other in zip(model.parameters(), eager.parameters(), strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, other, rtol=0, atol=0.1 * unit)


@pytest.mark.parametrize("dtype", NARROW)
def test_another_batch_and_evaluation_compute_in_the_program_s_own_dtype(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    model = mlp().to(dtype)
    eager = copy.deepcopy(model)
    step = mpcompile.compile(model, loss, torch.optim.SGD(model.parameters(), lr=0.0), batch())
    small = batch(4)
    assert float(step(*small)) == float(loss(eager, *small))
    x = small[0].to(dtype)
    torch.testing.assert_close(step.forward(x), eager(x))


def test_the_gradients_are_those_of_eager_pytorch() -> None:
    torch.manual_seed(0)
    model, words = Tied().bfloat16(), torch.randint(0, 16, (4, 6))
    eager = copy.deepcopy(model)
    tied_loss(eager, words).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = mpcompile.compile(model, tied_loss, optimizer, (words,), policy=FULL_PRECISION)
    found = step.gradients(words)
    for name, value in eager.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(found[name], value.grad.float(), rtol=1e-2, atol=1e-3)


def test_frozen_16_bit_weights_stay_as_they_are() -> None:
    model = mlp()
    model[0].to(torch.bfloat16).requires_grad_(False)

    def mixed(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = model[0](x.bfloat16()).float()
        return functional.cross_entropy(model[3](model[2](model[1](hidden))), y)

    trained = [value for value in model.parameters() if value.requires_grad]
    step = mpcompile.compile(model, mixed, torch.optim.AdamW(trained, lr=1e-2), batch())
    first = float(step(*batch()))
    assert first == first
    assert model[0].weight.dtype is torch.bfloat16


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp().bfloat16()
    with caplog.at_level(logging.WARNING, "mpcompile"):
        step = mpcompile.compile(model, loss, torch.optim.AdamW(model.parameters()), batch())
        step(*batch(4))
    said = [record for record in caplog.messages if "masters" in record]
    assert said == [
        "6 parameters are in 16 bits (0.weight first); they become FP32 masters, of which the "
        "program reads casts to its own dtype"
    ]


def test_a_refusal_changes_nothing() -> None:
    model = mlp().bfloat16()
    weight = next(model.parameters())
    weight.grad = torch.ones_like(weight)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters())

    def no_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(x.bfloat16()) + y[:, None]
        return result

    with pytest.raises(BadInput):
        mpcompile.compile(model, no_loss, optimizer, batch())
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert weight.grad.dtype is torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_pieces() -> None:
    torch.manual_seed(0)
    model, data = mlp().bfloat16(), batch()
    eager = copy.deepcopy(model)

    def branches(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        value = loss(model, x, y)
        return value * 2 if value.item() > 100 else value

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, branches, optimizer, data)
    assert step.captured.in_pieces is not None
    torch.testing.assert_close(step(*data), loss(eager, *data).float(), rtol=1e-2, atol=0)
    assert float(step(*data)) < float(loss(eager, *data))


def test_a_checkpoint_holds_the_masters(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, data = mlp().half(), batch()
    step = mpcompile.compile(model, loss, torch.optim.AdamW(model.parameters(), lr=1e-2), data)
    step(*data)
    step.save(tmp_path / "state.safetensors")
    torch.manual_seed(1)
    other = mlp().half()
    resumed = mpcompile.compile(other, loss, torch.optim.AdamW(other.parameters(), lr=1e-2), data)
    resumed.load(tmp_path / "state.safetensors")
    assert torch.equal(step(*data), resumed(*data))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
