"""Results of frequent ops on fake tensors, without the dispatcher's way through Python.

A fake mode decomposes these ops in Python when it meets new shapes: a cast takes a millisecond, a
linear layer in 16 bits seven. A mixed-precision graph has a hundred casts. Here is an answer only
where shape, strides and dtype are certain: sizes are numbers, the elements are packed, and no
tensor has a value that the mode would compute with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch

_ATEN = torch.ops.aten


def known_result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return what an op makes of fake tensors; None if the mode must be asked."""
    make = _KNOWN.get(func)
    return None if make is None else make(args, kwargs)


def _cast(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    value, dtype, device = args[0], kwargs.get("dtype"), kwargs.get("device")
    if (
        dtype is None
        or not _is_plain(value)
        or not (device is None or device == value.fake_device)
        or any(kwargs.get(name) not in allowed for name, allowed in _UNCHANGED.items())
        or not _is_packed(value)
    ):
        return None
    return _made(value, value.shape, value.stride(), dtype)


_UNCHANGED: dict[str, tuple[Any, ...]] = {
    "layout": (None, torch.strided),
    "pin_memory": (None, False),
    "non_blocking": (None, False),
    "memory_format": (None, torch.preserve_format),
}
"""The values with which an option of ``aten._to_copy`` changes nothing."""


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    if kwargs or len(args) != 3 or not all(map(_is_plain, args)):
        return None
    bias, one, other = args
    if (bias.dim(), one.dim(), other.dim()) != (1, 2, 2):
        return None
    rows, inner = one.shape
    columns = other.shape[1]
    alike = (
        one.dtype is other.dtype is bias.dtype
        and one.fake_device == other.fake_device == bias.fake_device
        and one.fake_mode is other.fake_mode is bias.fake_mode
    )
    fits = other.shape[0] == inner and bias.shape[0] == columns
    if not (alike and fits and one.is_floating_point() and min(rows, inner, columns) > 1):
        return None
    return _made(one, (rows, columns), (columns, 1), one.dtype)


_KNOWN: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], torch.Tensor | None]] = {
    _ATEN._to_copy.default: _cast,
    _ATEN.addmm.default: _linear,
}


def _made(
    like: FakeTensor, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    with no_dispatch():
        meta = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device="meta")
    return FakeTensor(like.fake_mode, meta, like.fake_device)


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, FakeTensor)
        and not value._has_symbolic_sizes_strides
        and value.constant is None
        and value.layout is torch.strided
        and not value.is_complex()
        and not value.is_neg()
    )


def _is_packed(value: torch.Tensor) -> bool:
    """Whether each element has its own place without gaps, and each stride follows from that."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size < 2 or stride != expected:
            return value.numel() > 0 and value.stride() == _contiguous(value.shape)
        expected *= size
    return True


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, stride = [], 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return tuple(reversed(strides))
