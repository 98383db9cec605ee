# torch gives `Function.apply` no types.
# mypy: disable-error-code="no-untyped-call,no-any-return,untyped-decorator"

"""Functions with weights, random numbers, or blocks that run again in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from programs.functions.on_tensors import RoundStraightThrough
from programs.functions.program import Program, add, between, squared


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


@add
def asks_for_fp32() -> Program:
    return _Mixed(CastInputs), squared


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


@add
def follows_autocast() -> Program:
    return _Mixed(PlainAmp), squared


class _Block(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        run = nn.Sequential(nn.Tanh(), self.last)
        return checkpoint(run, h, use_reentrant=self.reentrant)


@add
def checkpointed_block() -> Program:
    return _Block(reentrant=False), squared


@add
def checkpointed_block_reentrant() -> Program:
    return _Block(reentrant=True), squared


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


@add
def reversible_block() -> Program:
    return _RevNet(), squared


class Recompute(Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., torch.Tensor], x: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
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


@add
def recomputed_by_hand() -> Program:
    return _Recomputed(), squared


class OnDict(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.kept = {"x": x, "parts": (x.exp(), [x.sin()])}
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        exp, (sin,) = ctx.kept["parts"]
        return grad * exp * 0.5 + sin * 1e-3 + ctx.kept["x"] * 1e-3


@add
def tensors_on_the_context() -> Program:
    return between(OnDict.apply)


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


@add
def buffer_on_the_context() -> Program:
    return _Masked(), squared


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


@add
def dropout_by_hand() -> Program:
    return between(lambda x: DropoutByHand.apply(x, 0.3))


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


@add
def hard_choice_soft_gradient() -> Program:
    return between(lambda x: EntropicMax.apply(x, 0.5))


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


@add
def vector_quantizer() -> Program:
    return _VectorQuantized(), squared


class BalanceLoss(Function):
    """Adds the gradient of a loss that is not part of the result (as mixtures of experts do)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.shape = loss.shape
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grad, torch.ones(ctx.shape, dtype=grad.dtype, device=grad.device)


@add
def gradient_of_a_hidden_loss() -> Program:
    return between(lambda x: BalanceLoss.apply(x, (x.softmax(-1).mean(0) ** 2).sum()))
