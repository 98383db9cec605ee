"""Batches of examples that are held in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Batches:
    """Batches of one size; each iteration is an epoch in another order.

    The order comes from a generator of its own, so that dropout and initialisation, which draw
    from the global one, cannot change it.
    """

    def __init__(self, examples: tuple[Tensor, ...], size: int, seed: int) -> None:
        self.examples, self.size = examples, size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self.examples[0])
        order = torch.randperm(count, generator=self.generator).to(self.examples[0].device)
        for start in range(0, count - self.size + 1, self.size):
            rows = order[start : start + self.size]
            yield tuple(example[rows] for example in self.examples)
