"""What runs instead of an op that torch cannot run, or not differentiate, in a functional graph.

Each function computes the same values as its op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten


def _copy(like: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    return value.to(like.device, like.dtype).expand(like.shape)


def _one_hot(index: torch.Tensor, classes: int = -1) -> torch.Tensor:
    """Compare with every class; torch's own looks at the largest and smallest index first."""
    if classes < 0:
        return _ATEN.one_hot.default(index, classes)  # type: ignore[no-any-return]
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).to(torch.int64)


def _reshape(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return value.reshape(list(shape))


_INSTEAD: dict[Any, Callable[..., Any]] = {
    # Functionalization makes it of ``copy_``; torch has no derivative of it.
    _ATEN.copy.default: _copy,
    _ATEN.one_hot.default: _one_hot,
}

_AFTER_FAILURE: dict[Any, Callable[..., Any]] = {
    # A kernel for another precision, or one that autograd chooses, may return other strides than
    # in the capture. So what was a view then may need a copy now.
    _ATEN.view.default: _reshape,
    _ATEN._unsafe_view.default: _reshape,
}


class DifferentiableInterpreter(fx.Interpreter):
    """Runs a functional graph under autograd, on fake or on real tensors."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op, or what runs instead of it."""
        if target in _INSTEAD:
            return _INSTEAD[target](*args, **kwargs)
        if target not in _AFTER_FAILURE:
            return super().call_function(target, args, kwargs)
        try:
            return super().call_function(target, args, kwargs)
        except (RuntimeError, ValueError):
            return _AFTER_FAILURE[target](*args, **kwargs)
