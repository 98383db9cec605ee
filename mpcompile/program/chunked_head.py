"""The loss of a language model without its logits: a linear and a cross entropy, chunk by chunk.

The logits of a chunk of rows are computed, read and freed. Their gradient is known at once: softmax
minus one-hot, times a factor that backward supplies. So forward already computes the gradients of
input, weight and bias without that factor. No tensor of the logits' size is kept, and nothing is
computed twice.

The gradient of the logits is stored in 16 bits times `SHIFT`. Forward divides out only the part
of a mean's divisor that is not a power of two. So small probabilities stay above the smallest FP16
number, and the factor of backward causes no rounding. The gradient is at most `SHIFT`, so a row of
the input's gradient stays below ``2 * SHIFT`` times the largest weight. The weight's gradient, a
sum over all rows, is computed in FP32: it cannot overflow where the loss scale has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

SHIFT = 64.0
"""Power of two: the stored gradient of the logits is this times softmax minus one-hot."""


@dataclass(frozen=True, slots=True)
class _Head:
    """The options of `chunked_head`."""

    classes: int
    rows: int
    ignored: int
    mean: bool


def chunked_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    classes: int,
    rows: int,
    ignored: int,
    mean: bool,
) -> Any:
    """Return the cross entropy of ``linear(x, weight, bias)``.

    Args:
        x: ``[N, features]``, 16 bits.
        weight: ``[columns, features]``, 16 bits.
        bias: ``[columns]``, 16 bits, or None.
        target: int64 ``[N]``.
        classes: columns of the logits that count; padding of the matmul may add more columns.
        rows: the most rows of a chunk.
        ignored: the class index of rows that do not count.
        mean: whether the loss is a mean over the rows that count, or their sum.

    Returns:
        0-d FP32; NaN if it is a mean and no row counts.
    """
    head = _Head(classes, rows, ignored, mean)
    return _ChunkedHead.apply(x, weight, bias, target, head)  # type: ignore[no-untyped-call]


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head
    ) -> Tensor:
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # FP32 at once: inductor joins chunks that share ten bytes of input into one kernel.
        count = (target != head.ignored).sum(dtype=torch.float32)
        shift, power = SHIFT * torch.ones_like(count), torch.ones_like(count)
        if head.mean:
            power = count.clamp(min=1.0).log2().floor().exp2()
            shift = SHIFT * (power / count)
        loss, d_weight, d_bias = None, None, None
        d_x = []
        for start in range(0, x.shape[0], head.rows):
            part, wanted = x[start : start + head.rows], target[start : start + head.rows]
            value, gradient = _chunk(linear(part, weight, bias).float(), wanted, head, shift)
            gradient = gradient.to(x.dtype)
            loss = _sum(loss, value)
            if needs_x:
                d_x.append(gradient @ weight)
            if needs_weight:
                d_weight = _sum(d_weight, wide_product(gradient.t(), part))
            if needs_bias:
                d_bias = _sum(d_bias, gradient.sum(0, dtype=torch.float32))
        ctx.save_for_backward(torch.cat(d_x) if d_x else None, d_weight, d_bias, power)
        ctx.dtype = x.dtype
        assert loss is not None
        return loss / count if head.mean else loss

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, power = ctx.saved_tensors
        factor = seed / SHIFT / power
        scaled = [None if g is None else (g.float() * factor).to(ctx.dtype) for g in gradients]
        return (*scaled, None, None)


def _chunk(logits: Tensor, target: Tensor, head: _Head, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of a chunk's losses and the gradient of its logits times `shift`."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    if head.classes < logits.shape[1]:
        logits = logits.masked_fill(columns >= head.classes, float("-inf"))
    ignored = (target == head.ignored).unsqueeze(1)
    index = target.unsqueeze(1).masked_fill(ignored, 0)
    total = logits.logsumexp(1, keepdim=True)
    loss = (total - logits.gather(1, index)).masked_fill(ignored, 0.0).sum()
    probability = (logits - total).exp()
    gradient = torch.where(columns == index, probability - 1.0, probability)
    return loss, (gradient * shift).masked_fill(ignored, 0.0)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return a product of 16-bit matrices in FP32, as a Tensor Core computes it before rounding."""
    if left.is_cuda and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _sum(sum: Tensor | None, value: Tensor) -> Tensor:
    return value if sum is None else sum + value
