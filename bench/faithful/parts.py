# torch gives `Function.apply` and modules that are attributes no types.
# mypy: disable-error-code="no-untyped-call,no-any-return"

"""The parts of random programs: functions of a tensor [rows, 8] in a net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.faithful.functions import Matmul, Parts, Reverse, Sign

WIDTH = 8
Tensor = torch.Tensor
Part = Callable[["Block", Tensor], Tensor]
reverse = Reverse.apply


class Block(nn.Module):
    """A linear layer and a part, with all that a part may use.

    Args:
        part: the name of its part.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if part == "batch norm" else None
        self.drop = nn.Dropout(0.25)
        self.clipped = nn.Linear(WIDTH, WIDTH) if part == "clipped weight" else None
        self.teacher: nn.Linear | None = None
        if part == "teacher":
            self.teacher = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        if part == "spectral norm":
            nn.utils.parametrizations.spectral_norm(self.linear)
        self.register_buffer("centre", torch.zeros(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.centre: Tensor
        self.count: Tensor
        self.factor = 0.75
        self.options = {"slope": 0.1, "on": True}
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return PARTS[self.part](self, self.linear(x))


def _hooked(hook: Callable[[Tensor], Tensor]) -> Part:
    def part(block: Block, h: Tensor) -> Tensor:
        h.register_hook(hook)
        return h.tanh()

    return part


def _centre_in_place(block: Block, h: Tensor) -> Tensor:
    with torch.no_grad():
        block.centre.mul_(0.9).add_(h.mean(0), alpha=0.1)
        block.count += 1
    return h - block.centre


def _centre_assigned(block: Block, h: Tensor) -> Tensor:
    block.centre = 0.9 * block.centre + 0.1 * h.detach().mean(0)
    return h * block.centre.cos()


def _centre_by_a_view(block: Block, h: Tensor) -> Tensor:
    with torch.no_grad():
        block.centre[2:5] += h[0, :3]
    return h + block.centre.sin()


def _clipped(block: Block, h: Tensor) -> Tensor:
    assert block.clipped is not None
    with torch.no_grad():
        block.clipped.weight.clamp_(-0.3, 0.3)
    return block.clipped(h).tanh()


def _activation_written(block: Block, h: Tensor) -> Tensor:
    h = h * 1.5
    with torch.no_grad():
        h.clamp_(-1, 1)
    return h.sin()


def _teacher(block: Block, h: Tensor) -> Tensor:
    assert block.teacher is not None
    with torch.no_grad():
        block.teacher.weight.mul_(0.9).add_(block.linear.weight, alpha=0.1)
        target = block.teacher(h)
    return h + target


def _data(block: Block, h: Tensor) -> Tensor:
    block.centre.data.add_(h.data.mean(0), alpha=0.1)
    return h * block.centre + h.data


def _split(block: Block, h: Tensor) -> Tensor:
    positive, negative, mask = Parts.apply(h)
    result: Tensor = positive - 0.5 * negative + mask
    return result


def _hook_reads_buffer(block: Block, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad + 1e-3 * block.centre.cos())
    return h.tanh()


def _branch(block: Block, h: Tensor) -> Tensor:
    return h.relu() if block.options["on"] else h * block.options["slope"]


def _normed(block: Block, h: Tensor) -> Tensor:
    assert block.norm is not None
    result: Tensor = block.norm(h).tanh()
    return result


def _checkpointed(block: Block, h: Tensor) -> Tensor:
    result: Tensor = checkpoint(lambda x: block.linear(x.tanh()), h, use_reentrant=False)
    return result


PARTS: dict[str, Part] = {
    "plain": lambda _, h: h.tanh(),
    "in place": lambda _, h: (h * 2).add_(0.1).tanh_(),
    "reversed": lambda block, h: reverse(h, block.factor),
    "sign": lambda _, h: Sign.apply(h),
    "own matmul": lambda block, h: Matmul.apply(h.tanh(), block.linear.weight),
    "split": _split,
    "number": lambda block, h: (h * block.factor).tanh(),
    "options": _branch,
    "dropout": lambda block, h: block.drop(h.tanh()),
    "batch norm": _normed,
    "hook scales": _hooked(lambda grad: grad * 0.5),
    "hook clamps": _hooked(lambda grad: grad.clamp(-1e-2, 1e-2)),
    "hook reads": _hook_reads_buffer,
    "centre in place": _centre_in_place,
    "centre assigned": _centre_assigned,
    "centre by a view": _centre_by_a_view,
    "clipped weight": _clipped,
    "activation written": _activation_written,
    "teacher": _teacher,
    "data": _data,
    "checkpointed": _checkpointed,
    "spectral norm": lambda _, h: h.tanh(),
}
"""By name."""


class Net(nn.Module):
    """Blocks one behind another.

    Args:
        parts: the names of their parts.
    """

    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(part) for part in parts)
        self.last = nn.Linear(WIDTH, WIDTH)
        self.weight_of_loss = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the batch."""
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.last(x)
        return result


def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return the squared error, times a number on the net."""
    result: Tensor = net.weight_of_loss * ((net(x) - y) ** 2).mean()
    return result
