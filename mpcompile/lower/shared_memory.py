"""Results of compiled code that share memory with its inputs.

Inductor may return an input itself if a result equals it: from torch 2.14 on for ``x + 0``, in
2.13 for the sum with a tensor of zeros. State is written in place, so such a result would
change with the state after it was returned, and inductor merges example inputs that share memory
and are written to into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


class OwnMemory:
    """Copies the results of compiled code that share memory with its inputs.

    Compiled code does the same at every call, so only the first call is examined.
    """

    def __init__(self) -> None:
        self._shared: tuple[int, ...] | None = None

    def __call__(
        self, results: Sequence[torch.Tensor], inputs: Iterable[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the results of a call; none shares memory with its inputs.

        Args:
            results: tensors, and Nones for what has no value.
            inputs: what the code was called with.
        """
        if self._shared is None:
            self._shared = shared_results(results, inputs)
        own = list(results)
        for index in self._shared:
            own[index] = own[index].clone()
        return own


def shared_results(results: Sequence[object], inputs: Iterable[torch.Tensor]) -> tuple[int, ...]:
    """Return the indices of the results that share memory with an input.

    Args:
        results: tensors, and Nones for what has no value.
        inputs: what the code was called with.
    """
    memory = {value.untyped_storage().data_ptr() for value in inputs} - {0}  # 0: no memory
    return tuple(
        index
        for index, value in enumerate(results)
        if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in memory
    )
