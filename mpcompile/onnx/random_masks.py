"""Random masks from integer arithmetic: new in each step, and the same for the same seed.

The random ops of an ONNX graph take no seed as an input, and a CUDA graph repeats the numbers that
were drawn at capture. So a mask is a function of three values: a counter in the step's state, the
index of the mask in the program, and the element's row and column. The mixing is that of the MiMC
hash (Albrecht et al., 2016), ``x -> x**5 + c`` modulo a prime, on rows and on columns. One product
and one square mix both for each element.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

PRIME = 2**31 - 1
"""5 does not divide `PRIME` - 1, so fifth powers permute; squares fit into int64."""

_ROUNDS = (0x2545F491, 0x1B873593, 0x5851F42D, 0x4C957F2D)
_ROWS, _COLUMNS = 0x09E3779B, 0x3C6EF372


def keep_mask(shape: tuple[int, ...], keep: float, seed: Tensor, site: int) -> Tensor:
    """Return a boolean tensor whose elements are true with a given probability.

    Args:
        shape: of the mask.
        keep: the probability, in [0, 1].
        seed: 0-d int64 in [0, `PRIME`), different in each step.
        site: the index of this mask in the step.
    """
    return numbers(shape, seed, site) < round(keep * PRIME)


def numbers(shape: tuple[int, ...], seed: Tensor, site: int) -> Tensor:
    """Return int64 numbers of a shape, uniform in [0, `PRIME`); see `keep_mask`."""
    cut = min(range(len(shape) + 1), key=lambda k: prod(shape[:k]) + prod(shape[k:]))
    rows = _mixed(prod(shape[:cut]), seed, 2 * site * 7919 + _ROWS)
    columns = _mixed(prod(shape[cut:]), seed, (2 * site + 1) * 7919 + _COLUMNS)
    both = (rows.unsqueeze(-1) * columns + rows.unsqueeze(-1)) % PRIME
    return ((both * both + columns) % PRIME).reshape(shape)


def _mixed(count: int, seed: Tensor, salt: int) -> Tensor:
    """Return one number for each element of a row: int64 in [0, `PRIME`)."""
    position = torch.arange(count, dtype=torch.int64, device=seed.device)
    value = (position + salt % PRIME + (seed * 48271) % PRIME) % PRIME
    for constant in _ROUNDS:
        square = (value * value) % PRIME
        value = ((square * square) % PRIME * value + constant) % PRIME
    return value


def next_seed(seed: Tensor) -> Tensor:
    """Return the seed of the next step."""
    return (seed + 1) % PRIME
