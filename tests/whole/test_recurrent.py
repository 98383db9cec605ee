"""Recurrent layers on a CPU train in FP32 as in plain PyTorch, oneDNN's LSTM among them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets.recurrent import KINDS, Recurrent, loss

import mpcompile
from mpcompile import FULL_PRECISION, CannotCapture, TrainStep


def made(kind: str, **options: Any) -> tuple[Recurrent, torch.Tensor]:
    torch.manual_seed(0)
    return Recurrent(kind, 6, 9, 2, **options), torch.randn(5, 3, 6)


def compiled(model: Recurrent, x: torch.Tensor, backend: Any = "interpreter") -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return mpcompile.compile(model, loss, optimizer, (x,), policy=FULL_PRECISION, backend=backend)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fp32_is_bitwise_plain_pytorch(kind: str, bidirectional: bool) -> None:
    model, x = made(kind, bidirectional=bidirectional)
    peer = copy.deepcopy(model)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1)
    step = compiled(model, x)
    for _ in range(2):
        expected = loss(peer, x)
        optimizer.zero_grad()
        torch.autograd.backward(expected)
        optimizer.step()
        assert torch.equal(step(x), expected.detach())
    for left, right in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_batch_that_asks_for_its_gradient_is_only_read() -> None:
    model, x = made("lstm")
    value = compiled(model, x)(x.clone().requires_grad_())
    assert not value.requires_grad


def test_what_inductor_cannot_compile_is_refused_with_its_place() -> None:
    model, x = made("lstm")
    with pytest.raises(CannotCapture, match=r"recurrent.py:\d+.*FP32 LSTM on a CPU"):
        compiled(model, x, "inductor")
