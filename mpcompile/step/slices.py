"""Masters and optimizer state in slices, one per process."""

from __future__ import annotations

import torch

from mpcompile.step.arena import Arena
from mpcompile.step.processes import DataParallel


def own_slice(arena: Arena, whole: torch.Tensor, parallel: DataParallel | None) -> torch.Tensor:
    """Return this process's slice of a buffer with the layout of an arena, as a view."""
    if arena.ranks == 1:
        return whole
    assert parallel is not None
    length = arena.length // arena.ranks
    return whole.narrow(0, parallel.rank * length, length)


def absent(parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the stand-in for a weight that is held in slices: NaN, without memory."""
    nan = torch.full((), float("nan"), dtype=parameter.dtype, device=device)
    return nan.expand(parameter.shape)


def is_absent(parameter: torch.Tensor) -> bool:
    """Whether a weight is held in slices; one without dimensions never is."""
    return parameter.dim() > 0 and not any(parameter.stride()) and parameter.numel() > 0
