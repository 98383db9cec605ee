"""The CTC loss as one op with static shapes: ``mpcompile::ctc_loss``.

``aten::_ctc_loss`` also returns what its backward reads, and the size of that depends on the
longest target of the batch. This op returns the losses only; its backward runs the loss again. So
lengths may be tensors or lists, on the host or on the device, and PyTorch chooses the kernel (its
own or cuDNN's) for each batch as it always does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mpcompile.torch_private.tracing import autograd_inside_an_op

_NONE, _MEAN, _SUM = range(3)
"""How ``torch.ctc_loss`` numbers its reductions."""
_TAGS = (torch.Tag.data_dependent_output, torch.Tag.needs_fixed_stride_order)
"""The host waits for lengths, so no CUDA graph can hold the op."""


@torch.library.custom_op("mpcompile::ctc_loss", mutates_args=(), tags=_TAGS)
def ctc_losses(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> torch.Tensor:
    """Return the CTC loss of each sequence.

    Args:
        log_probs: [time, batch, classes] or [time, classes].
        targets: [batch, longest target], or one behind the other.
        input_lengths: [batch], integers.
        target_lengths: [batch], integers.
        blank: the class of the blank.
        zero_infinity: whether infinite losses count as zero.

    Returns:
        [batch], or 0-d for one sequence.
    """
    return _CTC(log_probs, targets, input_lengths, target_lengths, blank, _NONE, zero_infinity)


@ctc_losses.register_fake
def _(log_probs: torch.Tensor, *_: Any) -> torch.Tensor:
    return log_probs.new_empty(log_probs.shape[1:2] if log_probs.dim() == 3 else ())


@torch.library.custom_op("mpcompile::ctc_loss_backward", mutates_args=(), tags=_TAGS)
def ctc_losses_backward(
    gradient: torch.Tensor,
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> torch.Tensor:
    """Return the gradient of `ctc_losses` for its first argument."""
    with autograd_inside_an_op():
        inputs = log_probs.detach().requires_grad_()
        losses = _CTC(inputs, targets, input_lengths, target_lengths, blank, _NONE, zero_infinity)
        (found,) = torch.autograd.grad(losses, inputs, gradient)
    return found


@ctc_losses_backward.register_fake
def _(gradient: torch.Tensor, log_probs: torch.Tensor, *_: Any) -> torch.Tensor:
    del gradient
    return torch.empty_like(log_probs, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    del output
    *tensors, ctx.blank, ctx.zero_infinity = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    found = ctc_losses_backward(gradient, *ctx.saved_tensors, ctx.blank, ctx.zero_infinity)
    return found, None, None, None, None, None


ctc_losses.register_autograd(_differentiate, setup_context=_save)

_CTC = torch.ctc_loss


def _stand_in(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor | Sequence[int],
    target_lengths: torch.Tensor | Sequence[int],
    blank: int = 0,
    reduction: int = _MEAN,
    zero_infinity: bool = False,
) -> torch.Tensor:
    """Return what ``torch.ctc_loss`` returns."""
    inputs, lengths = torch.as_tensor(input_lengths), torch.as_tensor(target_lengths)
    losses: torch.Tensor = ctc_losses(log_probs, targets, inputs, lengths, blank, zero_infinity)
    if reduction == _MEAN:
        return (losses / lengths.to(losses).clamp_min(1)).mean()
    return losses.sum() if reduction == _SUM else losses


@contextmanager
def ctc_as_one_op() -> Iterator[None]:
    """Let ``torch.ctc_loss``, and so every CTC loss of PyTorch, be this op inside ``with``."""
    torch.ctc_loss = _stand_in
    try:
        yield
    finally:
        torch.ctc_loss = _CTC
