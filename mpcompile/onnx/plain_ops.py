"""Training ops that exporters do not know, or lower only for evaluation, in ops that ONNX has.

Every function has the arguments and results of the ATen op of its name. Sums, statistics and
exponentials are FP32 in every storage format (paper 3.3). Products of matrices keep 16-bit
operands; a Tensor Core adds up in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from mpcompile.onnx.plain_images import (
    adaptive_avg_pool2d_backward,
    adaptive_max_pool2d,
    avg_pool2d_backward,
    batch_norm,
    batch_norm_backward,
    convolution_backward,
    max_pool_backward,
)
from mpcompile.onnx.plain_resizing import RESIZING

Ints = Sequence[int]


def view(value: Tensor, size: Ints) -> Tensor:
    """Return a value in another shape; its strides may not allow a view."""
    return value.reshape(size)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return attention ``[N, H, L, E]`` and the logarithm of its sums of exponentials in FP32.

    Query ``[N, H, L, E]``, key and value ``[N, H, S, E]``.
    """
    assert not dropout_p, "a fused attention with dropout is not exported"
    logits = _logits(query, key, is_causal, attn_mask, scale)
    sums = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - sums.unsqueeze(-1)).to(value.dtype)
    return weights @ value, sums


def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Tensor,
    sums: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; the weights are computed again."""
    del dropout_p
    logits = _logits(query, key, is_causal, attn_mask, scale)
    weights = torch.exp(logits - sums.unsqueeze(-1))
    of_value = weights.to(value.dtype).transpose(-1, -2) @ gradient
    of_weights = (gradient @ value.transpose(-1, -2)).float()
    seen = (gradient.float() * result.float()).sum(-1, keepdim=True)
    of_logits = (weights * (of_weights - seen)).to(query.dtype)
    factor = _scale(query, scale)
    return (
        (of_logits @ key) * factor,
        (of_logits.transpose(-1, -2) @ query) * factor,
        of_value,
    )


def _logits(
    query: Tensor, key: Tensor, is_causal: bool, mask: Tensor | None, scale: float | None
) -> Tensor:
    logits = (query @ key.transpose(-1, -2)).float() * _scale(query, scale)
    if is_causal:
        rows, columns = query.shape[-2], key.shape[-2]
        ones = torch.ones(rows, columns, device=query.device)
        logits = torch.where(torch.tril(ones) > 0, logits, float("-inf"))
    if mask is not None and mask.dtype is torch.bool:
        logits = torch.where(mask, logits, float("-inf"))
    elif mask is not None:
        logits = logits + mask.float()
    return logits


def _scale(query: Tensor, scale: float | None) -> float:
    return 1.0 / sqrt(query.shape[-1]) if scale is None else scale


def embedding_dense_backward(
    gradient: Tensor, indices: Tensor, num_weights: int, padding_idx: int, by_frequency: bool
) -> Tensor:
    """Add each row's gradient to the row of the table that it came from, in FP32."""
    assert not by_frequency, "embeddings scaled by frequency are not exported"
    width = gradient.shape[-1]
    rows, found = gradient.float().reshape(-1, width), indices.reshape(-1)
    if padding_idx >= 0:
        rows = torch.where((found == padding_idx).unsqueeze(-1), 0.0, rows)
    table = torch.zeros(num_weights, width, device=gradient.device)
    added = table.index_put([found], rows, accumulate=True)
    return added.to(gradient.dtype)


def softmax_backward(gradient: Tensor, result: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a softmax's input."""
    product = gradient.float() * result.float()
    return (product - result.float() * product.sum(dim, keepdim=True)).to(dtype)


def log_softmax_backward(gradient: Tensor, result: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a log-softmax's input."""
    wide = gradient.float()
    return (wide - torch.exp(result.float()) * wide.sum(dim, keepdim=True)).to(dtype)


def nll_loss_forward(
    scores: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood and the sum of the weights, in FP32.

    Scores ``[N, C]`` or ``[N, C, *sizes]``, target without C. Reduction 0 is none, 1 the mean, 2
    the sum.
    """
    counts = target != ignore_index
    safe = torch.where(counts, target, 0)
    picked = -scores.float().gather(1, safe.unsqueeze(1)).squeeze(1)
    shares = counts.float()
    if weight is not None:
        shares = shares * weight.float().index_select(0, safe.reshape(-1)).reshape(safe.shape)
    total = shares.sum()
    lost = picked * shares
    if reduction == 0:
        return lost.to(scores.dtype), total
    value = lost.sum() if reduction == 2 else lost.sum() / total
    return value.to(scores.dtype), total


def largest_magnitude(
    value: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> Tensor:
    """Return the largest magnitude of all elements; other norms are computed by torch."""
    if order == float("inf") and dim is None and not keepdim and not options.get("dtype"):
        return value.abs().amax(list(range(value.dim())))
    found: Tensor = torch.linalg.vector_norm(value, order, dim, keepdim, **options)
    return found


def index_put(
    value: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Return a value with others written at, or added to, some places; sums are FP32."""
    places = [None if each is None or each.dtype is torch.bool else each.long() for each in indices]
    places = [old if new is None else new for old, new in zip(indices, places, strict=True)]
    if not accumulate:
        written: Tensor = torch.ops.aten.index_put(value, places, values)
        return written
    added: Tensor = torch.ops.aten.index_put(value.float(), places, values.float(), True)
    return added.to(value.dtype)


def softshrink_backward(gradient: Tensor, value: Tensor, lambd: float) -> Tensor:
    """Return the gradient of a soft or hard shrink's input: none between -lambda and lambda."""
    return torch.where((value >= -lambd) & (value <= lambd), 0.0, gradient)


def product(
    value: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """Return the product of all numbers, or of those along a dimension, by halves."""
    made = dtype or (value.dtype if value.is_floating_point() else torch.int64)
    found = value.reshape(-1) if dim is None else value.movedim(dim, -1)
    found = found.float() if found.is_floating_point() else found.long()
    while (count := found.shape[-1]) > 1:
        half = count // 2
        rest = found[..., 2 * half :]
        found = torch.cat([found[..., :half] * found[..., half : 2 * half], rest], -1)
    found = found.squeeze(-1) if value.numel() else torch.ones_like(found.sum(-1))
    return (found.unsqueeze(dim) if keepdim and dim is not None else found).to(made)


def products(value: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Return the products of all numbers up to each along a dimension, by steps of 1, 2, 4, ..."""
    made = dtype or (value.dtype if value.is_floating_point() else torch.int64)
    if not value.dim():
        return value.to(made)
    found = value.movedim(dim, -1)
    found = found.float() if found.is_floating_point() else found.long()
    step, count = 1, found.shape[-1]
    while step < count:
        found = torch.cat([found[..., :step], found[..., step:] * found[..., :-step]], -1)
        step *= 2
    return found.movedim(-1, dim).to(made)


PLAIN: dict[str, Callable[..., Any]] = {
    "convolution_backward": convolution_backward,
    "max_pool2d_with_indices_backward": max_pool_backward,
    "max_pool3d_with_indices_backward": partial(max_pool_backward, dims=3),
    "adaptive_max_pool2d": adaptive_max_pool2d,
    "adaptive_max_pool2d_backward": max_pool_backward,
    "adaptive_max_pool3d_backward": partial(max_pool_backward, dims=3),
    "avg_pool2d_backward": avg_pool2d_backward,
    "_adaptive_avg_pool2d_backward": adaptive_avg_pool2d_backward,
    "_native_batch_norm_legit_functional": batch_norm,
    "native_batch_norm_backward": batch_norm_backward,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "embedding_dense_backward": embedding_dense_backward,
    "_softmax_backward_data": softmax_backward,
    "_log_softmax_backward_data": log_softmax_backward,
    "nll_loss_forward": nll_loss_forward,
    "nll_loss2d_forward": nll_loss_forward,
    "linalg_vector_norm": largest_magnitude,
    **RESIZING,
    "index_put": index_put,
    "hardshrink_backward": softshrink_backward,
    "softshrink_backward": softshrink_backward,
    "prod": product,
    "cumprod": products,
    "view": view,
    "_unsafe_view": view,
}
"""For each ATen op by name, the function that replaces it."""
