"""Fake tensors, and data that torch stores beside the values of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode


def fake_mode() -> FakeTensorMode:
    """Return a mode whose tensors have shapes and dtypes but no values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(
    mode: FakeTensorMode, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Make one contiguous fake tensor; the dispatcher would take ten times as long."""
    return FakeTensor(mode, torch.empty(tuple(shape), dtype=dtype, device="meta"), device)


def fake_with(value: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a tensor as a fake one of fixed sizes, in the mode of others, if one is fake."""
    modes = [other.fake_mode for other in others if isinstance(other, FakeTensor)]
    if not modes or isinstance(value, FakeTensor):
        return value
    return modes[0].from_tensor(value, static_shapes=True)


def is_fake(value: torch.Tensor) -> bool:
    """Whether a tensor has no values."""
    return isinstance(value, FakeTensor)


def device_of(value: torch.Tensor) -> torch.device:
    """Return the device a fake tensor stands for, without asking the dispatcher."""
    return value.fake_device if isinstance(value, FakeTensor) else value.device


def with_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a fake tensor like another with this dtype."""
    assert isinstance(value, FakeTensor)
    like = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")
    return FakeTensor(value.fake_mode, like, value.device)


def cast_to(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``value.to(dtype)`` of a fake tensor, without the cache of its mode."""
    assert isinstance(value, FakeTensor)
    if value._has_symbolic_sizes_strides:
        return value.to(dtype)
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, like.to(dtype), value.fake_device)


def version_of(*tensors: torch.Tensor) -> int:
    """Return how often PyTorch's operations have written to the tensors in place."""
    return sum([tensor._version for tensor in tensors])  # faster than a generator


def set_version(tensor: torch.Tensor, version: int) -> None:
    """Set the counter of in-place writes back, after a write was undone."""
    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
