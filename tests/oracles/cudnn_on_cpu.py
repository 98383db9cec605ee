"""The three ATen ops of cuDNN's recurrent layers, for a CPU, with the restrictions of cuDNN.

They compute the results of PyTorch's own recurrent layers on a CPU. Weights are read from the
packed buffer only, tensors must have the layout that cuDNN requires, and a reserve works once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

PADDING = 3
RESERVE = 100
FRESH, USED = 7, 8
NAMES = ("rnn_relu", "rnn_tanh", "lstm", "gru")

Tensors = Sequence[torch.Tensor]


@cache
def install() -> torch.library.Library:
    """Register the ops for the whole process, which has no other CPU kernels for them."""
    library = torch.library.Library("aten", "IMPL")
    for implementation in (_cudnn_rnn_flatten_weight, _cudnn_rnn, _cudnn_rnn_backward):
        library.impl(implementation.__name__, implementation, "CPU")
    return library


def _cudnn_rnn_flatten_weight(
    weights: Tensors,
    per_layer: int,
    features: int,
    mode: int,
    cells: int,
    projected: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> torch.Tensor:
    assert weights[0].shape[1] == features
    assert len(weights) == per_layer * layers * (1 + bidirectional)
    assert weights[0].shape[0] == cells * (1, 1, 4, 3)[mode]
    assert projected in (0, weights[1].shape[1])
    flat = torch.cat([weights[0].new_zeros(PADDING), *[w.flatten() for w in reversed(weights)]])
    for weight, view in zip(weights, _unpack(flat, weights), strict=True):
        weight.set_(view)  # type: ignore[call-overload]
    return flat


def _unpack(flat: torch.Tensor, like: Tensors) -> list[torch.Tensor]:
    parts = flat[PADDING:].split([weight.numel() for weight in reversed(like)])
    views = [part.view(w.shape) for part, w in zip(parts, reversed(like), strict=True)]
    return views[::-1]


def _cudnn_rnn(
    input: torch.Tensor,
    weights: Tensors,
    per_layer: int,
    flat: torch.Tensor,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, ...]:
    assert len({value.dtype for value in (input, flat, hx, *weights)}) == 1
    assert hx.is_contiguous()
    assert cx is None or cx.is_contiguous()
    leaves = [input, *_unpack(flat, weights), hx, *([] if cx is None else [cx])]
    output, hy, *cy = [v.detach() for v in _as_in_training(leaves, per_layer, options)[0]]
    if options[4]:
        output = output.transpose(0, 1).contiguous().transpose(0, 1)
    reserve = torch.full((RESERVE,), FRESH, dtype=torch.uint8)
    return output, hy, cy[0] if cy else hx.new_empty(0), reserve, flat


def _cudnn_rnn_backward(
    input: torch.Tensor,
    weights: Tensors,
    per_layer: int,
    flat: torch.Tensor,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    output: torch.Tensor,
    d_output: torch.Tensor | None,
    d_hy: torch.Tensor | None,
    d_cy: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
    *options_, reserve, mask = options
    batch_first = options_[4]
    assert (output.transpose(0, 1) if batch_first else output).is_contiguous()
    assert reserve.shape == (RESERVE,)
    assert (reserve == FRESH).all(), "a reserve works once"
    reserve.fill_(USED)
    assert mask == [True, True, cx is not None, True]

    leaves = [input, *_unpack(flat, weights), hx, *([] if cx is None else [cx])]
    given = (d_output, d_hy, d_cy)
    d_input, *rest = _as_in_training(leaves, per_layer, tuple(options_), given)[1]
    if batch_first:
        d_input = d_input.transpose(0, 1).contiguous().transpose(0, 1)
    shared = torch.cat([part.flatten() for part in rest[: len(weights)]])
    sizes = [weight.numel() for weight in weights]
    parts = [p.view(w.shape) for p, w in zip(shared.split(sizes), weights, strict=True)]
    return d_input, rest[len(weights)], None if cx is None else rest[-1], parts


def _as_in_training(
    values: list[torch.Tensor],
    per_layer: int,
    options: tuple[Any, ...],
    gradients: Sequence[torch.Tensor | None] = (),
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return the results, and the gradients of the values if those of the results are given."""

    def run() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        leaves = [value.detach().requires_grad_() for value in values]
        results = _run(leaves, per_layer, options)
        pairs = [(a, d) for a, d in zip(results, gradients, strict=False) if d is not None]
        if not pairs:
            return results, ()
        found = torch.autograd.grad([a for a, _ in pairs], leaves, [d for _, d in pairs])
        return results, found

    # An op's kernel runs below autograd; a thread of its own does not.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _run(
    values: list[torch.Tensor], per_layer: int, options: tuple[Any, ...]
) -> tuple[torch.Tensor, ...]:
    mode, _, _, layers, batch_first, dropout, train, bidirectional, batch_sizes, state = options
    assert (dropout, train, list(batch_sizes), state) == (0.0, True, [], None)
    count = 1 + per_layer * layers * (1 + bidirectional)
    assert len(values) == count + (2 if NAMES[mode] == "lstm" else 1)
    op = getattr(torch.ops.aten, NAMES[mode]).input
    states: Any = values[count:] if NAMES[mode] == "lstm" else values[count]
    biases = per_layer >= 4
    results: tuple[torch.Tensor, ...] = op(
        values[0], states, values[1:count], biases, layers, 0.0, True, bidirectional, batch_first
    )
    return results
