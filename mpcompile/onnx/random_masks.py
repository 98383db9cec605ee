"""Random masks out of plain integer arithmetic: fresh each step, and the same for the same seed.

An ONNX graph draws from its runtime, which gives no seed as an input, and a CUDA graph replays what
was drawn when it was captured. So a mask is a function of a counter that the step carries as
state, of the place in the program, and of the element's row and column. The mixing is that of the
MiMC hash (Albrecht et al., 2016), ``x -> x**5 + c`` modulo a prime, on rows and on columns; one
product and one square mix both for each element.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

PRIME = 2**31 - 1
"""5 does not divide this prime less 1, so fifth powers permute; squares fit into int64."""

_ROUNDS = (0x2545F491, 0x1B873593, 0x5851F42D, 0x4C957F2D)
_ROWS, _COLUMNS = 0x09E3779B, 0x3C6EF372


def keep_mask(shape: tuple[int, ...], keep: float, seed: Tensor, site: int) -> Tensor:
    """Return a boolean tensor that is true with a probability.

    Args:
        shape: of the mask.
        keep: the probability, in [0, 1].
        seed: 0-d int64 in [0, `PRIME`), another one each step.
        site: which mask of the step this is.
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
    """Return one number for each of a row of elements: int64 in [0, `PRIME`)."""
    place = torch.arange(count, dtype=torch.int64, device=seed.device)
    value = (place + salt % PRIME + (seed * 48271) % PRIME) % PRIME
    for constant in _ROUNDS:
        square = (value * value) % PRIME
        value = ((square * square) % PRIME * value + constant) % PRIME
    return value


def next_seed(seed: Tensor) -> Tensor:
    """Return the seed of the next step."""
    return (seed + 1) % PRIME
