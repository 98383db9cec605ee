# torch gives `Function.apply` and modules that are attributes no types.
# mypy: disable-error-code="no-untyped-call,no-any-return"

"""Custom autograd Functions for random programs."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

Tensor = torch.Tensor


class Reverse(Function):
    """The gradient with another sign and size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """Return the input."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Reverse the gradient."""
        return -ctx.strength * grad, None


class Sign(Function):
    """A step with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return -1 or 1."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Pass the gradient where the input is small."""
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Matmul(Function):
    """A matmul with a derivative that is a little wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return the product."""
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return both gradients, that of the weight at half its size."""
        x, weight = ctx.saved_tensors
        d_x = grad @ weight.t() if ctx.needs_input_grad[0] else None
        d_weight = x.t() @ grad * 0.5 if ctx.needs_input_grad[1] else None
        return d_x, d_weight


class Parts(Function):
    """Two differentiable results and one that is not."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return positive and negative parts, and their signs."""
        return x.clamp_min(0), x.clamp_max(0), x > 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        """Keep the signs."""
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2])

    @staticmethod
    def backward(ctx: Any, positive: Tensor, negative: Tensor, _: Tensor) -> Tensor:
        """Weigh the parts differently."""
        (mask,) = ctx.saved_tensors
        return torch.where(mask, positive * 1.5, negative * 0.25)
