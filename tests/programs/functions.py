"""Thirty programs with derivatives of their own, as libraries write them.

Each entry is a function that returns a model and a loss of ``loss(model, x, y)``, for ``x`` and
``y`` of shape [6, 8].
"""

# torch gives `Function.apply` no types.
# mypy: disable-error-code="no-untyped-call,no-any-return,untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Program = tuple[nn.Module, Callable[..., torch.Tensor]]
FUNCTIONS: dict[str, Callable[[], Program]] = {}


def _add(function: Callable[[], Program]) -> Callable[[], Program]:
    FUNCTIONS[function.__name__] = function
    return function


def _squared(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((model(x) - y) ** 2).mean()


class _Between(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor], width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 8)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


def _between(middle: Callable[[torch.Tensor], torch.Tensor]) -> Program:
    return _Between(middle), _squared


class SignStraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


@_add
def straight_through_sign() -> Program:
    return _between(SignStraightThrough.apply)


class RoundStraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


@_add
def straight_through_round() -> Program:
    return _between(lambda x: RoundStraightThrough.apply(x * 4) / 4)


class Reverse(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.neg() * ctx.strength, None


reverse = Reverse.apply  # bound before any program runs, as libraries do


@_add
def gradient_reversal() -> Program:
    return _between(lambda x: reverse(x, 0.7))


class Scale(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.factor, None


@_add
def gradient_scaling() -> Program:
    return _between(lambda x: Scale.apply(x, 0.1))


class ClampWithGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(x.clamp(low, high) != x)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (outside,) = ctx.saved_tensors
        return torch.where(outside, grad * 0.5, grad), None, None


@_add
def clamp_with_gradient() -> Program:
    return _between(lambda x: ClampWithGradient.apply(x, -0.3, 0.3))


class ClipGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.clamp(-1e-3, 1e-3)


@_add
def gradient_clipped_inside() -> Program:
    return _between(ClipGradient.apply)


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


@_add
def sparsemax() -> Program:
    return _between(Sparsemax.apply)


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


@_add
def focal_kernel() -> Program:
    return _Between(torch.tanh), lambda m, x, y: FocalKernel.apply(m(x), y, 2.0)


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


@_add
def learned_step_quantizer() -> Program:
    return _Quantized(), _squared


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


@_add
def linear_by_hand() -> Program:
    return _ByHand(bias=True), _squared


@_add
def linear_by_hand_without_bias() -> Program:
    return _ByHand(bias=False), _squared


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


@_add
def memory_efficient_swish() -> Program:
    return _between(Swish.apply)


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


@_add
def default_argument_and_vjp() -> Program:
    return _between(lambda x: Power.apply(x))


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


@_add
def several_outputs() -> Program:
    def middle(x: torch.Tensor) -> torch.Tensor:
        positive, negative, count = SplitWithCount.apply(x)
        return positive - negative.exp() * count

    return _between(middle)


@_add
def one_of_several_outputs() -> Program:
    return _between(lambda x: SplitWithCount.apply(x)[0])


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


@_add
def no_materialized_gradients() -> Program:
    return _between(lambda x: WithoutZeros.apply(x)[0])


class Nested(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return SignStraightThrough.apply(x) * Swish.apply(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return Scale.apply(grad, 2.0) * SignStraightThrough.apply(x)


@_add
def nested() -> Program:
    return _between(Nested.apply)


@_add
def one_behind_another() -> Program:
    return _between(lambda x: reverse(SignStraightThrough.apply(reverse(x, 0.5) * 2), 1.5))


class CastInputs(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.t(), x.t() @ grad


class _Mixed(nn.Module):
    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function.apply(self.first(x), self.mix))


@_add
def asks_for_fp32() -> Program:
    return _Mixed(CastInputs), _squared


class PlainAmp(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.t() * 0.5, x.t() @ grad


@_add
def follows_autocast() -> Program:
    return _Mixed(PlainAmp), _squared


class _Block(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        run = nn.Sequential(nn.Tanh(), self.last)
        return checkpoint(run, h, use_reentrant=self.reentrant)


@_add
def checkpointed_block() -> Program:
    return _Block(reentrant=False), _squared


@_add
def checkpointed_block_reentrant() -> Program:
    return _Block(reentrant=True), _squared


class Reversible(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, f: nn.Module, g: nn.Module) -> torch.Tensor:
        ctx.f, ctx.g = f, g
        with torch.no_grad():
            a, b = x.chunk(2, dim=-1)
            c = a + f(b)
            d = b + g(c)
        ctx.save_for_backward(c.detach(), d.detach())
        return torch.cat([c, d], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        c, d = ctx.saved_tensors
        d_c, d_d = grad.chunk(2, dim=-1)
        with torch.enable_grad():
            c = c.detach().requires_grad_()
            gc = ctx.g(c)
        torch.autograd.backward(gc, d_d)
        with torch.no_grad():
            b = d - gc
            d_c = d_c + c.grad
        with torch.enable_grad():
            b = b.detach().requires_grad_()
            fb = ctx.f(b)
        torch.autograd.backward(fb, d_c)
        return torch.cat([d_c, d_d + b.grad], dim=-1), None, None


class _RevNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.f = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.g = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(Reversible.apply(self.first(x), self.f, self.g))


@_add
def reversible_block() -> Program:
    return _RevNet(), _squared


class Recompute(Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., torch.Tensor], x: torch.Tensor, *weights: torch.Tensor
    ):
        ctx.run = run
        ctx.save_for_backward(x, *weights)
        with torch.no_grad():
            return run(x, *weights)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            inputs = [value.detach().requires_grad_() for value in ctx.saved_tensors]
            result = ctx.run(*inputs)
        return (None, *torch.autograd.grad(result, inputs, grad))


class _Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return Recompute.apply(
            lambda h, w, b: nn.functional.linear(h.tanh(), w, b),
            h,
            self.last.weight,
            self.last.bias,
        )


@_add
def recomputed_by_hand() -> Program:
    return _Recomputed(), _squared


class OnDict(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.kept = {"x": x, "parts": (x.exp(), [x.sin()])}
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        exp, (sin,) = ctx.kept["parts"]
        return grad * exp * 0.5 + sin * 1e-3 + ctx.kept["x"] * 1e-3


@_add
def tensors_on_the_context() -> Program:
    return _between(OnDict.apply)


class NoiseBackward(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.mask = mask
        return x * mask

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.mask * 2, None


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("mask", (torch.arange(16) % 2).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(NoiseBackward.apply(self.first(x), self.mask))


@_add
def buffer_on_the_context() -> Program:
    return _Masked(), _squared


class DropoutByHand(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        mask = (torch.rand_like(x) > p).to(x) / (1 - p)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None


@_add
def dropout_by_hand() -> Program:
    return _between(lambda x: DropoutByHand.apply(x, 0.3))


class EntropicMax(Function):
    """The perturbed-optimizer pattern: a hard choice with the gradient of a soft one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, temperature: float) -> torch.Tensor:
        soft = torch.softmax(x / temperature, dim=-1)
        ctx.save_for_backward(soft)
        ctx.temperature = temperature
        return nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (soft,) = ctx.saved_tensors
        inner = (grad * soft).sum(-1, keepdim=True)
        return soft * (grad - inner) / ctx.temperature, None


@_add
def hard_choice_soft_gradient() -> Program:
    return _between(lambda x: EntropicMax.apply(x, 0.5))


class EmbeddingLookup(Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.rows = table.shape[0]
        return table[index]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        result = torch.zeros(ctx.rows, grad.shape[-1], dtype=grad.dtype, device=grad.device)
        return result.index_add_(0, index, grad), None


class _VectorQuantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.codes = nn.Parameter(torch.randn(12, 16) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        nearest = torch.cdist(h, self.codes).argmin(-1)
        code = EmbeddingLookup.apply(self.codes, nearest)
        return self.last(RoundStraightThrough.apply(h * 0 + code) + h - h.detach())


@_add
def vector_quantizer() -> Program:
    return _VectorQuantized(), _squared


class BalanceLoss(Function):
    """Adds the gradient of a loss that is not part of the result (as mixtures of experts do)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.shape = loss.shape
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grad, torch.ones(ctx.shape, dtype=grad.dtype, device=grad.device)


@_add
def gradient_of_a_hidden_loss() -> Program:
    return _between(lambda x: BalanceLoss.apply(x, (x.softmax(-1).mean(0) ** 2).sum()))
