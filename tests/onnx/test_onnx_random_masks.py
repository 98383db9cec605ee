"""Random masks from integers: right probability, independent elements, the same in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mpcompile.onnx.random_masks import PRIME, keep_mask, next_seed, numbers

SHAPE = (64, 48, 32)
COUNT = 64 * 48 * 32
Integers = NDArray[np.int64]


def seed(value: int) -> torch.Tensor:
    return torch.tensor(value)


def by_numpy(rows: int, columns: int, start: int, site: int) -> Integers:
    """The same hash, written again from its description."""

    def mixed(count: int, salt: int) -> Integers:
        value = (np.arange(count) + salt % PRIME + start * 48271 % PRIME) % PRIME
        for constant in (0x2545F491, 0x1B873593, 0x5851F42D, 0x4C957F2D):
            fourth = (value * value % PRIME) ** 2 % PRIME
            value = (fourth * value + constant) % PRIME
        return value

    row = mixed(rows, 2 * site * 7919 + 0x09E3779B)[:, None]
    column = mixed(columns, (2 * site + 1) * 7919 + 0x3C6EF372)[None]
    both = (row * column + row) % PRIME
    return (both * both + column) % PRIME


@pytest.mark.parametrize(("start", "site"), [(0, 1), (5, 1), (PRIME - 1, 7)])
def test_numpy_gives_the_same_numbers(start: int, site: int) -> None:
    found = numbers((40, 50), seed(start), site).numpy()
    assert np.array_equal(found, by_numpy(40, 50, start, site))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_masks_have_the_given_probability(keep: float) -> None:
    masks = torch.stack([keep_mask(SHAPE, keep, seed(step), 1) for step in range(20)]).double()
    deviation = (keep * (1 - keep) / masks.numel()) ** 0.5
    assert abs(float(masks.mean()) - keep) <= 5 * deviation + 1e-9
    for dim in range(4):  # equally often in each step, row and column
        others = [d for d in range(4) if d != dim]
        means = masks.mean(others)
        spread = (keep * (1 - keep) / (masks.numel() / len(means))) ** 0.5
        assert float((means - keep).abs().max()) <= 6 * spread + 1e-9


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double().flatten(), other.double().flatten()
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def test_steps_sites_and_neighbours_are_independent() -> None:
    limit = 5 / COUNT**0.5
    first = keep_mask(SHAPE, 0.5, seed(3), 1)
    assert abs(correlation(first, keep_mask(SHAPE, 0.5, next_seed(seed(3)), 1))) < limit
    assert abs(correlation(first, keep_mask(SHAPE, 0.5, seed(3), 2))) < limit
    for shift in (1, 2, 7):
        for dim in range(3):
            assert abs(correlation(first, first.roll(shift, dim))) < limit


def test_four_corners_of_a_rectangle_are_independent() -> None:
    """Rows and columns are hashed separately, so products of corners could reveal a dependence."""
    mask = keep_mask((256, 256), 0.5, seed(11), 1).double() * 2 - 1
    corners = mask[:128, :128] * mask[128:, :128] * mask[:128, 128:] * mask[128:, 128:]
    assert abs(float(corners.mean())) < 5 / 128


def test_a_seed_stays_in_its_range() -> None:
    assert int(next_seed(seed(PRIME - 1))) == 0
    assert int(next_seed(seed(4))) == 5
