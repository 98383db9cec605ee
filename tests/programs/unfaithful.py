"""Programs whose captured graph is not the program: what a capture may miss, one kind each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpcompile.program.workload import Workload


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 0.1 * gradient


class Net(nn.Module):
    """Two layers, and what a kind puts between them."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 4), nn.Linear(4, 1), between
        self.register_buffer("centre", torch.zeros(4))
        self.centre: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.second(self.between(self.first(x)))
        return made


class Centred(Net):
    """Writes its buffer through a view under no_grad, then reads it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        with torch.no_grad():
            self.centre.view(2, 2).mul_(0.5).add_(hidden.mean(0).view(2, 2))
        made: torch.Tensor = self.second(hidden - self.centre)
        return made


class Counted(Net):
    """Replaces its buffer, which `torch.export` drops."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.centre = self.centre + 1
        return super().forward(x)


def hooked(value: torch.Tensor) -> torch.Tensor:
    result = torch.relu(value)
    if result.requires_grad:
        result.register_hook(lambda gradient: 2 * gradient)
    return result


def with_parameter_hook() -> Net:
    net = Net()
    net.second.weight.register_hook(lambda gradient: 3 * gradient)
    return net


def with_module_hook() -> Net:
    net = Net()

    def larger(_: nn.Module, given: Any, __: Any) -> Any:
        return (4 * given[0],)

    net.second.register_full_backward_hook(larger)
    return net


@dataclass(frozen=True)
class Kind:
    """A program, and what must be named as the first difference."""

    make: Callable[[], Net]
    named: str


KINDS = {
    "custom function": Kind(lambda: Net(Scaled.apply), "the gradient of first.weight"),
    "tensor hook": Kind(lambda: Net(hooked), "the gradient of first.weight"),
    "parameter hook": Kind(with_parameter_hook, "the gradient of second.weight"),
    "module hook": Kind(with_module_hook, "the gradient of first.weight"),
    "write through a view": Kind(Centred, "the gradient of first.weight"),
    "replaced buffer": Kind(Counted, "the next value of centre"),
}


def squares(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(x)
    return result.pow(2).mean()


def workload(kind: Kind) -> Workload:
    torch.manual_seed(0)
    model = kind.make()
    optimizer = torch.optim.Adam(model.parameters())
    return Workload(model, (torch.randn(8, 4),), squares, optimizer)
