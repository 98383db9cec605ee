"""Programs with hooks of tensors, parameters and modules.

`ON_TENSORS` are middles of `Net`; `BEFORE` register hooks of parameters and modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


class Net(nn.Module):
    """Two linear layers; `middle` may hook the tensor between them."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("mask", (torch.arange(16) % 2).float())
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.middle is not None:
            hidden = self.middle(self, hidden)
        result: Tensor = self.last(hidden.tanh())
        return result


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = ((model(x) - y) ** 2).mean()
    return result


def scales(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad * 0.1)
    return h


def clamps(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))
    return h


def two_in_order(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad + 1e-3)
    h.register_hook(lambda grad: grad * 3)
    return h


def behind_a_reader(net: Net, h: Tensor) -> Tensor:
    before = h.sin()
    h.register_hook(lambda grad: grad * 0.1)
    return before + h


def reads_a_buffer(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad * net.mask)
    return h


def reads_another_tensor(net: Net, h: Tensor) -> Tensor:
    gate = torch.sigmoid(net.first.bias)
    h.register_hook(lambda grad: grad * gate)
    return h


def removed(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad * 0).remove()
    return h


def changes_nothing(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: None)
    return h


class Keeps:
    """Its method is the hook."""

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def hook(self, grad: Tensor) -> Tensor:
        return grad * self.factor


def a_method(net: Net, h: Tensor) -> Tensor:
    h.register_hook(Keeps(h.detach().abs().mean()).hook)
    return h


def on_a_parameter(net: Net, h: Tensor) -> Tensor:
    net.first.weight.register_hook(lambda grad: grad * 0.5)
    return h


def before_a_region_without_gradients(net: Net, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))
    with torch.no_grad():
        mask: Any = net.mask
        mask.mul_(0.9).add_(h.mean(0), alpha=0.1)
    result: Tensor = h * mask
    return result


ON_TENSORS = [before_a_region_without_gradients, scales, clamps, two_in_order, behind_a_reader,
              reads_a_buffer, reads_another_tensor, removed, changes_nothing, a_method]  # fmt: skip


def parameter(net: Net) -> None:
    net.first.weight.register_hook(lambda grad: grad * 0.3)


def parameter_clamped(net: Net) -> None:
    for each in net.parameters():
        each.register_hook(lambda grad: torch.clamp(grad, -1e-3, 1e-3))


def parameter_masked(net: Net) -> None:
    mask = (torch.arange(16) % 3 == 0).float()[:, None]
    net.first.weight.register_hook(lambda grad: grad * mask)


def parameter_twice(net: Net) -> None:
    net.last.weight.register_hook(lambda grad: grad + 1e-3)
    net.last.weight.register_hook(lambda grad: grad * 2)


def complete(net: Net) -> None:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(0.3).clamp_(-1e-3, 1e-3)

    net.first.weight.register_post_accumulate_grad_hook(hook)


def complete_replaced(net: Net) -> None:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad = weight.grad + 1e-3 * weight.detach()

    net.first.weight.register_post_accumulate_grad_hook(hook)


def both(net: Net) -> None:
    parameter(net)
    complete(net)


def backward_of_a_module(net: Net) -> None:
    def hook(module: Any, given: Any, made: Any) -> Any:
        return (given[0] * 0.1,)

    net.last.register_full_backward_hook(hook)


def backward_of_a_module_reads(net: Net) -> None:
    def hook(module: Any, given: Any, made: Any) -> Any:
        return (given[0] + made[0].mean() * module.weight.abs().mean(),)

    net.last.register_full_backward_hook(hook)


def before_backward_of_a_module(net: Net) -> None:
    def hook(module: Any, made: Any) -> Any:
        return (made[0].clamp(-1e-2, 1e-2),)

    net.last.register_full_backward_pre_hook(hook)


def halves(module: Any, made: Any) -> Any:
    return (made[0] * 0.5,)


def of_the_first_module(net: Net) -> None:
    # Its input needs no gradient.
    net.first.register_full_backward_hook(lambda module, given, made: None)
    net.first.register_full_backward_pre_hook(halves)


def of_all_modules(net: Net) -> None:
    for module in net.modules():
        module.register_full_backward_pre_hook(halves)


def forward_hooks(net: Net) -> None:
    net.first.register_forward_hook(lambda module, given, made: made * 2)
    net.last.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


BEFORE = [parameter, parameter_clamped, parameter_masked, parameter_twice, complete,
          complete_replaced, both, backward_of_a_module, backward_of_a_module_reads,
          before_backward_of_a_module, of_the_first_module, of_all_modules,
          forward_hooks]  # fmt: skip
