"""What happens to a random program before it is compiled, and between two calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.faithful.parts import WIDTH, Net

Change = Callable[[Net, torch.optim.Optimizer, int], object]
"""Changes a net and its optimizer; the number says which block, and how much."""


def _block(net: Net, number: int) -> Any:
    return net.blocks[number % len(net.blocks)]


def _parameter_hook(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    net.last.weight.register_hook(lambda grad: grad * (0.5 + number))


def _complete_hook(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    def hook(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(0.5 + number)

    net.last.bias.register_post_accumulate_grad_hook(hook)


def _module_hook(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    def hook(module: nn.Module, made: Any) -> Any:
        return (made[0] * (0.5 + number),)

    _block(net, number).register_full_backward_pre_hook(hook)


def _forward_hook(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    _block(net, number).register_forward_hook(lambda module, given, made: made * 1.25)


HOOKS: dict[str, Change] = {
    "parameter hook": _parameter_hook,
    "complete hook": _complete_hook,
    "module hook": _module_hook,
    "forward hook": _forward_hook,
}
"""Hooks, by name; they are registered before or after compiling."""


def _set(net: Net, number: int, **values: Any) -> None:
    block = _block(net, number)
    for name, value in values.items():
        setattr(block, name, value)


def _new_group(net: Net, optimizer: torch.optim.Optimizer, number: int) -> None:
    extra = nn.Parameter(torch.ones(WIDTH))
    net.last.register_parameter("extra", extra)
    optimizer.add_param_group({"params": [extra], "lr": 1e-3})


def _rate(net: Net, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.param_groups[0]["lr"] *= 0.5


def _zeroed(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    with torch.no_grad():
        _block(net, number).linear.bias.zero_()


def _data_zeroed(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    net.last.bias.data.zero_()


def _data_replaced(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    net.last.weight.data = net.last.weight.data * 0.5


def _buffer_replaced(net: Net, _: torch.optim.Optimizer, number: int) -> None:
    _block(net, number).centre = torch.full((WIDTH,), 0.1)


CHANGES: dict[str, Change] = {
    **HOOKS,
    "evaluation": lambda net, _, number: net.eval(),
    "training": lambda net, _, number: net.train(),
    "one block's evaluation": lambda net, _, number: _block(net, number).eval(),
    "dropout": lambda net, _, number: setattr(_block(net, number).drop, "p", 0.1 * (number % 5)),
    "factor": lambda net, _, number: _set(net, number, factor=0.1 * (number + 1)),
    "option": lambda net, _, number: _block(net, number).options.update(on=number % 2 == 0),
    "weight of the loss": lambda net, _, number: setattr(net, "weight_of_loss", 0.25 * number),
    "freeze": lambda net, _, number: _block(net, number).linear.requires_grad_(False),
    "unfreeze": lambda net, _, number: _block(net, number).linear.requires_grad_(True),
    "learning rate": _rate,
    "zero": _zeroed,
    "zero by data": _data_zeroed,
    "replace data": _data_replaced,
    "replace a buffer": _buffer_replaced,
    "replace a module": lambda net, _, number: setattr(net, "last", nn.Linear(WIDTH, WIDTH)),
    "new group": _new_group,
}
"""By name."""
