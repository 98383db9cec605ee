"""Recurrent layers on CUDA as one differentiable op: ``mpcompile::cudnn_rnn``.

PyTorch's own ``aten::_cudnn_rnn`` cannot be differentiated on fake tensors. Only cuDNN knows the
size of its reserve (the data that forward keeps for backward), so the fake result has another size
than backward needs. This op hides the size: see `cudnn_rnn`. The alternative, torch's
decomposition of an LSTM, has dozens of nodes per time step.

Costs beside ``torch.nn.LSTM``: the weights, which are in the step's arenas, are packed for cuDNN
once in forward and once in backward, and their gradients are copied out of one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_ATEN = torch.ops.aten

MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}
"""cuDNN's numbers for the recurrent ops of ATen."""

_GATES = (1, 1, 4, 3)
_ARGUMENTS = (
    "Tensor input, Tensor[] weights, Tensor hx, Tensor? cx, "
    "int mode, int layers, bool batch_first, bool bidirectional"
)
_RESULTS = "Tensor output, Tensor reserve, Tensor? d_output, Tensor? d_hy, Tensor? d_cy"


@torch.library.custom_op(
    "mpcompile::cudnn_rnn",
    mutates_args=(),
    schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    # Not random, but two calls must not be merged: backward writes to the reserve.
    tags=(torch.Tag.nondeterministic_seeded,),
)
def cudnn_rnn(
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    mode: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run recurrent layers without dropout through cuDNN.

    Args:
        input: ``[T, N, features]``, or ``[N, T, features]`` with `batch_first`; all tensors are
            FP16, BF16, FP32 or FP64.
        weights: per layer and direction the tensors of ``torch.nn.LSTM``, in its order.
        hx: the first state, ``[layers * directions, N, outputs]``.
        cx: the first cells, ``[layers * directions, N, cells]``; None unless it is an LSTM.
        mode: see `MODES`.
        layers: how many layers.
        batch_first: see `input`.
        bidirectional: whether each layer runs in both directions.

    Returns:
        The output ``[T, N, directions * outputs]`` (or batch first), the last state, the last cells
        (``[0]`` unless it is an LSTM), and a uint8 ``[1]`` for the reserve: a view of its first
        byte, through whose storage backward finds the rest. Backward can use it once, and only if
        it was not copied.
    """
    output, hy, cy, reserve, _ = _ATEN._cudnn_rnn(
        input,
        weights,
        _per_layer(weights, layers, bidirectional),
        _packed(input, weights, hx, mode, layers, batch_first, bidirectional),
        hx.contiguous(),
        None if cx is None else cx.contiguous(),
        *_options(weights, hx, mode, layers, batch_first, bidirectional),
    )
    return output, hy, cy, reserve[:1]


@cudnn_rnn.register_fake
def _(
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    mode: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    del weights, mode, layers
    features = (1 + bidirectional) * hx.shape[2]
    return (
        _time_major(input, features, batch_first),
        hx.new_empty(hx.shape),
        hx.new_empty((0,)) if cx is None else cx.new_empty(cx.shape),
        input.new_empty((1,), dtype=torch.uint8),
    )


@torch.library.custom_op(
    "mpcompile::cudnn_rnn_backward",
    mutates_args=(),
    schema=f"({_RESULTS}, {_ARGUMENTS}) -> Tensor[]",
)
def cudnn_rnn_backward(
    output: torch.Tensor,
    reserve: torch.Tensor,
    d_output: torch.Tensor | None,
    d_hy: torch.Tensor | None,
    d_cy: torch.Tensor | None,
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    mode: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> list[torch.Tensor]:
    """Differentiate one call of `cudnn_rnn`, once.

    Args:
        output: the output of forward.
        reserve: the reserve of forward.
        d_output: gradient of the output; None means zeros, also for the next two.
        d_hy: gradient of the last state.
        d_cy: gradient of the last cells.
        input: this and all following arguments are those of forward.
        weights: see `cudnn_rnn`.
        hx: see `cudnn_rnn`.
        cx: see `cudnn_rnn`.
        mode: see `cudnn_rnn`.
        layers: see `cudnn_rnn`.
        batch_first: see `cudnn_rnn`.
        bidirectional: see `cudnn_rnn`.

    Returns:
        The gradients of `input`, `hx`, `cx` if there is one, and each weight.
    """
    whole = reserve.as_strided((reserve.untyped_storage().nbytes(),), (1,), 0)
    if whole.numel() == 1:
        raise RuntimeError(
            "the reserve of mpcompile::cudnn_rnn was copied between forward and backward"
        )
    if batch_first:  # cuDNN needs the memory order of forward, which is time-major
        output = output.transpose(0, 1).contiguous().transpose(0, 1)
    d_input, d_hx, d_cx, d_weights = _ATEN._cudnn_rnn_backward(
        input,
        weights,
        _per_layer(weights, layers, bidirectional),
        _packed(input, weights, hx, mode, layers, batch_first, bidirectional),
        hx.contiguous(),
        None if cx is None else cx.contiguous(),
        output,
        d_output,
        d_hy,
        d_cy,
        *_options(weights, hx, mode, layers, batch_first, bidirectional),
        whole,
        [True, True, cx is not None, True],
    )
    # The gradients are parts of one buffer, but an op's results must not share memory.
    copies = [part.clone(memory_format=torch.contiguous_format) for part in d_weights]
    return [d_input, d_hx, *([] if cx is None else [d_cx]), *copies]


@cudnn_rnn_backward.register_fake
def _(
    output: torch.Tensor,
    reserve: torch.Tensor,
    d_output: torch.Tensor | None,
    d_hy: torch.Tensor | None,
    d_cy: torch.Tensor | None,
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    mode: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> list[torch.Tensor]:
    del output, reserve, d_output, d_hy, d_cy, mode, layers, bidirectional
    like = [hx, *([] if cx is None else [cx]), *weights]
    return [
        _time_major(input, input.shape[2], batch_first),
        *[value.new_empty(value.shape) for value in like],
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    input, weights, hx, cx, *options = inputs
    result, _, _, reserve = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(result, reserve, input, hx, cx, *weights)
    ctx.options = options


def _differentiate(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
    result, reserve, input, hx, cx, *weights = ctx.saved_tensors
    d_input, d_hx, *rest = cudnn_rnn_backward(
        result, reserve, *gradients[:3], input, weights, hx, cx, *ctx.options
    )
    d_cx = None if cx is None else rest.pop(0)
    return d_input, rest, d_hx, d_cx, *[None] * len(ctx.options)


cudnn_rnn.register_autograd(_differentiate, setup_context=_save)


def _per_layer(weights: Sequence[torch.Tensor], layers: int, bidirectional: bool) -> int:
    """Return the number of weights per layer and direction."""
    return len(weights) // (layers * (1 + bidirectional))


def _sizes(weights: Sequence[torch.Tensor], hx: torch.Tensor, mode: int) -> tuple[int, int]:
    """Return the number of cells, and of projected outputs (0 without a projection)."""
    cells = weights[0].shape[0] // _GATES[mode]
    return cells, hx.shape[2] if hx.shape[2] != cells else 0


def _options(
    weights: Sequence[torch.Tensor],
    hx: torch.Tensor,
    mode: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> tuple[Any, ...]:
    """Return the arguments that both ATen ops take: training, no dropout, no packed batch."""
    sizes = _sizes(weights, hx, mode)
    return (mode, *sizes, layers, batch_first, 0.0, True, bidirectional, [], None)


def _packed(
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    hx: torch.Tensor,
    mode: int,
    layers: int,
    batch_first: bool,
    bidirectional: bool,
) -> torch.Tensor:
    """Return the weights in the one buffer that cuDNN reads.

    The op turns its input tensors into views of that buffer, so it gets aliases.
    """
    aliases = [
        weight.new_empty(0).set_(
            weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride()
        )
        for weight in weights
    ]
    packed: torch.Tensor = _ATEN._cudnn_rnn_flatten_weight(
        aliases,
        _per_layer(weights, layers, bidirectional),
        input.shape[2],
        mode,
        *_sizes(weights, hx, mode),
        layers,
        batch_first,
        bidirectional,
    )
    return packed


def _time_major(like: torch.Tensor, features: int, batch_first: bool) -> torch.Tensor:
    """Return an empty tensor with another number of features, in the memory order of cuDNN."""
    first, second, _ = like.shape
    if batch_first:
        return like.new_empty((second, first, features)).transpose(0, 1)
    return like.new_empty((first, second, features))
