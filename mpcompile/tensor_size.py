"""How many numbers a tensor holds, dynamic dimensions included."""

from __future__ import annotations

from math import prod

import torch


def count_of(value: torch.Tensor) -> int:
    """Return how many numbers a tensor holds.

    A dynamic dimension counts as it is in the example; one that data decides counts as 1.
    """
    return prod(_size(size) for size in value.shape)


def _size(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1
