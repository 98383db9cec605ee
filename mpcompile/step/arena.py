"""Trained parameters side by side in one buffer: their offsets, and views of the buffer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import torch

ALIGNMENT = 32
"""Each parameter starts at a multiple of so many elements: 64 bytes of FP16, 128 of FP32."""


TILE = 8
"""A 16-bit matmul needs a multiple of so many outputs for rows aligned to 16 bytes."""


_MANY_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Arena:
    """Parameters that are stored in one flat buffer and are updated together.

    A parameter of an optimizer that is not elementwise has its own arena and keeps its shape
    there.

    Attributes:
        name: ``arena0``; its slots are ``arena0.master``, ``arena0.working``, ``arena0.exp_avg``.
        group: index of the optimizer's parameter group.
        parameters: names in the order of their offsets.
        shapes: their shapes.
        flat: whether it is one dimension with each parameter aligned to `ALIGNMENT`. Behind a
            matrix of more than 1024 rows there is room for rows up to a multiple of `TILE`.
        zeros: whether the update keeps gaps zero.
        ranks: number of processes; each holds a slice of the masters and their state, all of one
            length.
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
        """The first element of each parameter, and the end of the arena."""
        ends = list(accumulate(_length(s) if self.flat else prod(s) for s in self.shapes))
        if self.ranks > 1:
            ends[-1] = _up(ends[-1], ALIGNMENT * self.ranks)
        return (0, *ends)

    @property
    def length(self) -> int:
        """The number of elements of the masters of all processes."""
        return self.offsets[-1]

    def offset_of(self, parameter: str) -> int:
        """Return the first element of a parameter."""
        return self.offsets[self.parameters.index(parameter)]

    def gaps(self) -> dict[str, int]:
        """Return the number of unused elements behind each parameter."""
        lengths = (end - start for start, end in pairwise(self.offsets))
        return {
            name: length - prod(shape)
            for name, shape, length in zip(self.parameters, self.shapes, lengths, strict=True)
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the master buffer; of a sharded arena, one slice."""
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
    """The position of a trained weight in an arena.

    Attributes:
        arena: the name of its flat arena.
        room: number of elements of the gap behind it.
        zeros: whether the gap holds zeros.
    """

    arena: str
    room: int
    zeros: bool
