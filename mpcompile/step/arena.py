"""Trained parameters side by side in one buffer: what is where, and views of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import torch

ALIGNMENT = 32
"""Elements to which each parameter starts in its arena: 64 bytes of FP16, 128 of FP32."""


TILE = 8
"""Outputs of a 16-bit matmul come in multiples of this, or its rows are not aligned to 16 bytes."""


_MANY_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Arena:
    """Parameters that lie in one flat buffer and are updated together.

    A parameter of an optimizer that is not elementwise has an arena of its own and keeps its
    shape there.

    Attributes:
        name: ``arena0``; its slots are ``arena0.master``, ``arena0.working``, ``arena0.exp_avg``.
        group: index of the optimizer's parameter group.
        parameters: names in the order in which they lie.
        shapes: their shapes.
        flat: whether it is one dimension with each parameter aligned to `ALIGNMENT`. Behind a
            matrix of more than 1024 rows there is room for rows up to a multiple of `TILE`.
        zeros: whether the update leaves gaps zero as they are.
        ranks: processes of which each holds a slice of the masters and of their state, all as long.
    """

    name: str
    group: int
    parameters: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    flat: bool
    zeros: bool = False
    ranks: int = 1

    @property
    def offsets(self) -> tuple[int, ...]:
        """First element of each parameter, and the end of the arena."""
        ends = list(accumulate(_length(s) if self.flat else prod(s) for s in self.shapes))
        if self.ranks > 1:
            ends[-1] = _up(ends[-1], ALIGNMENT * self.ranks)
        return (0, *ends)

    @property
    def length(self) -> int:
        """Elements of the masters of all processes."""
        return self.offsets[-1]

    def offset_of(self, parameter: str) -> int:
        """First element of a parameter."""
        return self.offsets[self.parameters.index(parameter)]

    def gaps(self) -> dict[str, int]:
        """Elements behind each parameter that are nobody's."""
        lengths = (end - start for start, end in pairwise(self.offsets))
        return {
            name: length - prod(shape)
            for name, shape, length in zip(self.parameters, self.shapes, lengths, strict=True)
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the master buffer, which of a sharded arena is one slice."""
        return (self.length // self.ranks,) if self.flat else self.shapes[0]


def _length(shape: tuple[int, ...]) -> int:
    """Return the elements that a parameter of a flat arena takes, with the gap behind it."""
    if len(shape) == 2 and shape[0] > _MANY_ROWS:
        shape = (_up(shape[0], TILE), shape[1])
    return _up(prod(shape), ALIGNMENT)


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def arena_views(arena: Arena, buffer: torch.Tensor) -> list[torch.Tensor]:
    """Return the parameters' views of a buffer laid out like the arena or its beginning."""
    if not arena.flat:
        return [buffer]
    return [
        buffer[offset : offset + prod(shape)].view(shape)
        for offset, shape in zip(arena.offsets[:-1], arena.shapes, strict=True)
        if offset + prod(shape) <= buffer.numel()
    ]


@dataclass(frozen=True, slots=True)
class ArenaPosition:
    """Where a trained weight lies.

    Attributes:
        arena: the name of its flat arena.
        room: elements of the gap behind it.
        zeros: whether they are zeros.
    """

    arena: str
    room: int
    zeros: bool
