"""Writes through views train as in eager PyTorch, without a second trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import FULL_PRECISION
from mpcompile.program.functional import mutation

Body = Callable[[nn.Module, Tensor], Any]


def slices(net: Any, x: Tensor) -> Any:
    h = net.fc(x)
    out = torch.zeros_like(h)
    out[:, 1:] = h[:, :-1]
    out[:, 0] = 2.0
    return out * h


def views_that_are_read_later(net: Any, x: Tensor) -> Any:
    h = net.fc(x) * 1.0
    first, turned, row = h[0], h.t(), h.view(-1)
    h[:, 2] *= 3.0
    result: Tensor = h * turned.t() + first + row.sum()
    return result


def a_base_that_is_written_with_views(net: Any, x: Tensor) -> Any:
    h = net.fc(x) * 1.0
    inner = h[1:3].transpose(0, 1)
    h.mul_(2.0)
    inner.add_(1.0)
    h.sub_(0.5)
    return h.tanh() + inner.sum()


def chained(net: Any, x: Tensor) -> Any:
    h = net.fc(x).clone()
    part = h[:, ::2].mul_(2.0).add_(1.0)
    h[1].zero_()
    return h + part.mean()


def diagonals_and_permutations(net: Any, x: Tensor) -> Any:
    h = net.fc(x).clone()
    h[:4, :4].diagonal().fill_(1.0)
    cube = h.view(2, 2, 4).permute(2, 0, 1)
    cube[1].unsqueeze(-1).mul_(0.5)
    return h + cube.sum()


def a_mask(net: Any, x: Tensor) -> Any:
    h = net.fc(x)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:, 0] = False
    mask.t()[1].logical_not_()
    return torch.where(mask, h, h * 0.5)


def a_buffer(net: Any, x: Tensor) -> Any:
    h = net.fc(x)
    net.seen[0] += 1.0
    net.seen[1:].copy_(h.detach().mean(0)[1:])
    result: Tensor = h * net.seen
    return result


def two_parts(net: Any, x: Tensor) -> Any:
    h = net.fc(x)
    left, right = torch.zeros(4, 4).chunk(2)
    left.add_(1.0)
    return h * torch.cat([right, left]) + h


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(4))


BODIES: dict[str, Body] = {
    body.__name__: body
    for body in (
        *(slices, views_that_are_read_later, a_base_that_is_written_with_views, chained),
        *(diagonals_and_permutations, a_mask, a_buffer, two_parts),
    )
}
BY_TORCH = {"two_parts"}  # the parts of a chunk are not taken again


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
@pytest.mark.parametrize("name", BODIES)
def test_it_trains_as_in_eager_pytorch(
    name: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in BY_TORCH:
        monkeypatch.setattr(mutation, "_by_torch", None)
    torch.manual_seed(0)
    model, x, body = Net(), torch.randn(4, 3), BODIES[name]
    eager = copy.deepcopy(model)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = body(model, x).square().mean()
        return value

    optimizer = torch.optim.SGD(eager.parameters(), lr=0.1)
    mine = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, loss, mine, (x,), policy=FULL_PRECISION, backend=backend)
    for _ in range(3):
        optimizer.zero_grad()
        theirs = loss(eager, x)
        theirs.backward()
        optimizer.step()
        torch.testing.assert_close(step(x), theirs.detach())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[key])


@pytest.mark.parametrize("name", BODIES)
def test_in_16_bits_it_is_near(name: str) -> None:
    torch.manual_seed(0)
    model, x, body = Net(), torch.randn(4, 3), BODIES[name]
    eager = copy.deepcopy(model)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = body(model, x).square().mean()
        return value

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, loss, optimizer, (x,))
    torch.testing.assert_close(step(x), loss(eager, x).detach(), rtol=5e-3, atol=1e-3)
