"""The smallest of a set that still suffices, found by trials: delta debugging.

Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28(2), 2002,
figure 5 (ddmin), on items in the order in which they are suspected.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def smallest_sufficient(
    items: Sequence[T], suffices: Callable[[frozenset[T]], bool]
) -> tuple[T, ...]:
    """Return items that suffice together, and do not if any one of them is left out.

    First the 1, 2, 4, ... most suspicious are tried until they suffice, then ddmin takes away what
    is not needed. No set is tried twice. If more items never suffice less, no smaller part of the
    result suffices; where trials are not that well behaved, a part that lacks two items or more
    may.

    Args:
        items: the most suspicious first, each once. All of them together suffice: the caller has
            tried that, and it is not tried again.
        suffices: a trial; it answers the same whenever it is asked the same.

    Returns:
        In the order of `items`; nothing if nothing is needed.
    """
    tried: dict[frozenset[T], bool] = {frozenset(items): True}

    def enough(some: tuple[T, ...]) -> bool:
        key = frozenset(some)
        if key not in tried:
            tried[key] = suffices(key)
        return tried[key]

    if enough(()):
        return ()
    size = 1
    while not enough(tuple(items[:size])):
        size *= 2
    return _one_minimal(tuple(items[:size]), enough)


def _one_minimal(kept: tuple[T, ...], enough: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Return what ddmin leaves of items that suffice, where no items do not."""
    count = 2
    while len(kept) > 1:
        parts = _parts(kept, count)
        alone = next((part for part in parts if enough(part)), None)
        if alone is not None:
            kept, count = alone, 2
            continue
        rests = (tuple(item for item in kept if item not in part) for part in map(frozenset, parts))
        rest = next((rest for rest in rests if enough(rest)), None)
        if rest is not None:
            kept, count = rest, max(count - 1, 2)
        elif count == len(kept):
            break
        else:
            count = min(2 * count, len(kept))
    return kept


def _parts(items: tuple[T, ...], count: int) -> list[tuple[T, ...]]:
    """Cut items into parts of nearly one size; there are at least as many items as parts."""
    borders = [len(items) * part // count for part in range(count + 1)]
    return [items[start:end] for start, end in pairwise(borders)]
