# torch gives `Function.apply` no types.
# mypy: disable-error-code="no-untyped-call,no-any-return,untyped-decorator"

"""Functions of a tensor, most of them element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from programs.functions.program import Between, Program, add, between, squared


class SignStraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


@add
def straight_through_sign() -> Program:
    return between(SignStraightThrough.apply)


class RoundStraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


@add
def straight_through_round() -> Program:
    return between(lambda x: RoundStraightThrough.apply(x * 4) / 4)


class Reverse(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.neg() * ctx.strength, None


reverse = Reverse.apply  # bound before any program runs, as libraries do


@add
def gradient_reversal() -> Program:
    return between(lambda x: reverse(x, 0.7))


class Scale(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.factor, None


@add
def gradient_scaling() -> Program:
    return between(lambda x: Scale.apply(x, 0.1))


class ClampWithGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(x.clamp(low, high) != x)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (outside,) = ctx.saved_tensors
        return torch.where(outside, grad * 0.5, grad), None, None


@add
def clamp_with_gradient() -> Program:
    return between(lambda x: ClampWithGradient.apply(x, -0.3, 0.3))


class ClipGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.clamp(-1e-3, 1e-3)


@add
def gradient_clipped_inside() -> Program:
    return between(ClipGradient.apply)


class Sparsemax(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ordered, _ = torch.sort(x, dim=-1, descending=True)
        index = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        total = ordered.cumsum(-1) - 1
        size = (ordered * index > total).sum(-1, keepdim=True)
        tau = total.gather(-1, size - 1) / size
        result = torch.clamp(x - tau, min=0)
        ctx.save_for_backward(size, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        size, result = ctx.saved_tensors
        grad = grad.masked_fill(result == 0, 0)
        mean = grad.sum(-1, keepdim=True) / size
        return torch.where(result != 0, grad - mean, grad)


@add
def sparsemax() -> Program:
    return between(Sparsemax.apply)


class FocalKernel(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, target: torch.Tensor, gamma: float) -> torch.Tensor:
        p = torch.sigmoid(x)
        pt = torch.where(target > 0, p, 1 - p)
        ctx.save_for_backward(p, target)
        ctx.gamma = gamma
        return (-((1 - pt) ** gamma) * pt.clamp_min(1e-6).log()).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        p, target = ctx.saved_tensors
        return grad * (p - (target > 0).to(p)) / p.numel(), None, None


@add
def focal_kernel() -> Program:
    return Between(torch.tanh), lambda m, x, y: FocalKernel.apply(m(x), y, 2.0)


class FakeQuantize(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        return torch.round(x / scale).clamp(-8, 7) * scale

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, scale = ctx.saved_tensors
        level = x / scale
        inside = (level >= -8) & (level <= 7)
        slope = torch.where(inside, level.round() - level, level.clamp(-8, 7))
        return grad * inside, (grad * slope).sum().view_as(scale)


class _Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = FakeQuantize.apply(self.first.weight, self.scale)
        return self.last(nn.functional.linear(x, weight, self.first.bias).relu())


@add
def learned_step_quantizer() -> Program:
    return _Quantized(), squared


class LinearByHand(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        return x @ weight.t() if bias is None else x @ weight.t() + bias

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        d_x = grad @ weight if ctx.needs_input_grad[0] else None
        d_weight = grad.t() @ x if ctx.needs_input_grad[1] else None
        d_bias = grad.sum(0) if bias is not None and ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias


class _ByHand(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16, bias=bias), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(LinearByHand.apply(x, self.first.weight, self.first.bias).tanh())


@add
def linear_by_hand() -> Program:
    return _ByHand(bias=True), squared


@add
def linear_by_hand_without_bias() -> Program:
    return _ByHand(bias=False), squared


class Swish(Function):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


@add
def memory_efficient_swish() -> Program:
    return between(Swish.apply)


class Power(Function):
    @staticmethod
    def forward(x: torch.Tensor, exponent: float = 2.0) -> torch.Tensor:
        return x.abs() ** exponent

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, ctx.exponent = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def vjp(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.exponent * x.abs() ** (ctx.exponent - 1) * x.sign() * 0.5, None


@add
def default_argument_and_vjp() -> Program:
    return between(lambda x: Power.apply(x))


class SplitWithCount(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positive, negative = x.clamp_min(0), x.clamp_max(0)
        count = (x > 0).sum(-1, keepdim=True)
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(x > 0)
        return positive, negative, count

    @staticmethod
    def backward(
        ctx: Any, positive: torch.Tensor, negative: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, positive * 2, negative * 0.5)


@add
def several_outputs() -> Program:
    def middle(x: torch.Tensor) -> torch.Tensor:
        positive, negative, count = SplitWithCount.apply(x)
        return positive - negative.exp() * count / 16

    return between(middle)


@add
def one_of_several_outputs() -> Program:
    return between(lambda x: SplitWithCount.apply(x)[0])


class WithoutZeros(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        return x.sin(), x.cos()

    @staticmethod
    def backward(
        ctx: Any, sine: torch.Tensor | None, cosine: torch.Tensor | None
    ) -> torch.Tensor | None:
        return sine * 3 if cosine is None and sine is not None else cosine


@add
def no_materialized_gradients() -> Program:
    return between(lambda x: WithoutZeros.apply(x)[0])


class Nested(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return SignStraightThrough.apply(x) * Swish.apply(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return Scale.apply(grad, 2.0) * SignStraightThrough.apply(x)


@add
def nested() -> Program:
    return between(Nested.apply)


@add
def one_behind_another() -> Program:
    return between(lambda x: reverse(SignStraightThrough.apply(reverse(x, 0.5) * 2), 1.5))
