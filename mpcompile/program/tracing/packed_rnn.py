"""A recurrent layer over sequences of several lengths, as one op: ``mpcompile::packed_rnn``.

It takes and returns padded tensors, so all shapes are static. Inside, PyTorch packs the sequences
and runs its own kernel for packed sequences, which is cuDNN's on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpcompile.torch_private.packed import run_packed
from mpcompile.torch_private.tracing import autograd_inside_an_op

_TAGS = (torch.Tag.data_dependent_output, torch.Tag.needs_fixed_stride_order)
"""The host waits for lengths, so no CUDA graph can hold the op."""

_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("mpcompile::packed_rnn", mutates_args=(), tags=_TAGS)
def packed_rnn(
    padded: torch.Tensor,
    lengths: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weights: Sequence[torch.Tensor],
    mode: str,
    biases: bool,
    layers: int,
    bidirectional: bool,
) -> _Three:
    """Run a recurrent layer over sequences, from the longest to the shortest.

    Args:
        padded: [time, batch, features]; the values behind a sequence's end do not count.
        lengths: [batch], int64, on the host.
        hidden: [layers x directions, batch, hidden features], the state before.
        cell: the same of an LSTM's cells; without elements for others.
        weights: in the order of ``RNNBase._flat_weights``.
        mode: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        biases: whether biases are among the weights.
        layers: number of layers.
        bidirectional: whether there are two directions.

    Returns:
        The results, [time, batch, directions x features], zero behind the end; the last hidden
        states; the last cell states, without elements if the layer is no LSTM.
    """
    return run_packed(padded, lengths, hidden, cell, weights, mode, biases, layers, bidirectional)


@packed_rnn.register_fake
def _(
    padded: torch.Tensor,
    lengths: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weights: Sequence[torch.Tensor],
    mode: str,
    biases: bool,
    layers: int,
    bidirectional: bool,
) -> _Three:
    del lengths, weights, mode, biases, layers
    time, batch, _ = padded.shape
    result = padded.new_empty((time, batch, hidden.shape[-1] * (1 + bidirectional)))
    return result, hidden.new_empty(hidden.shape), cell.new_empty(cell.shape)


@torch.library.custom_op("mpcompile::packed_rnn_backward", mutates_args=(), tags=_TAGS)
def packed_rnn_backward(
    gradients: Sequence[torch.Tensor],
    padded: torch.Tensor,
    lengths: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weights: Sequence[torch.Tensor],
    mode: str,
    biases: bool,
    layers: int,
    bidirectional: bool,
) -> list[torch.Tensor]:
    """Return the gradients of ``padded``, ``hidden``, ``cell`` and ``weights``.

    The layer runs again: what cuDNN keeps for backward has a size that depends on the batch.
    """
    with autograd_inside_an_op():
        inputs = [value.detach().requires_grad_() for value in (padded, hidden, cell, *weights)]
        x, h, c, *read = inputs
        results = run_packed(x, lengths, h, c, read, mode, biases, layers, bidirectional)
        known = [
            (result, gradient)
            for result, gradient in zip(results, gradients, strict=True)
            if result.requires_grad and result.numel()
        ]
        made, given = zip(*known, strict=True)
        found = torch.autograd.grad(made, inputs, given, allow_unused=True)
    return [
        torch.zeros_like(value) if gradient is None else gradient.contiguous()
        for gradient, value in zip(found, inputs, strict=True)
    ]


@packed_rnn_backward.register_fake
def _(
    gradients: Sequence[torch.Tensor],
    padded: torch.Tensor,
    lengths: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *_: Any,
) -> list[torch.Tensor]:
    del gradients, lengths
    return [value.new_empty(value.shape) for value in (padded, hidden, cell, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    padded, lengths, hidden, cell, weights, *ctx.options = inputs
    ctx.save_for_backward(padded, lengths, hidden, cell, *weights)
    ctx.results = [(value.shape, value.dtype, value.device) for value in output]


def _differentiate(ctx: Any, *given: torch.Tensor | None) -> tuple[Any, ...]:
    gradients = [
        torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
        for gradient, (shape, dtype, device) in zip(given, ctx.results, strict=True)
    ]
    padded, lengths, hidden, cell, *weights = ctx.saved_tensors
    d_padded, d_hidden, d_cell, *d_weights = packed_rnn_backward(
        gradients, padded, lengths, hidden, cell, weights, *ctx.options
    )
    return d_padded, None, d_hidden, d_cell, d_weights, None, None, None, None


packed_rnn.register_autograd(_differentiate, setup_context=_save)
