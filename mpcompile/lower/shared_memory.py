"""Results of compiled code that lie in the memory of what the code reads.

Inductor may return an input itself where a result equals it: from torch 2.14 on it does so for an
integer ``x + 0``. State is written in place, so such a result would change with the state after it
was returned, and inductor merges example inputs that share memory and are written to into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def shared_places(results: Sequence[object], inputs: Iterable[torch.Tensor]) -> tuple[int, ...]:
    """Return the places of the results that lie in the memory of an input.

    Compiled code does the same at every call, so it is enough to look once.

    Args:
        results: tensors, and Nones for what has no value.
        inputs: what the code was called with.
    """
    memory = {value.untyped_storage().data_ptr() for value in inputs} - {0}  # 0: no memory at all
    return tuple(
        place
        for place, value in enumerate(results)
        if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in memory
    )


def with_own_memory(results: Sequence[torch.Tensor], places: Iterable[int]) -> list[torch.Tensor]:
    """Return the results, those in the given places copied."""
    own = list(results)
    for place in places:
        own[place] = own[place].clone()
    return own
