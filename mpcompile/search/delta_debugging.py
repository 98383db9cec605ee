"""The smallest part of a set that still suffices, found by trials: delta debugging.

1-minimal is what Zeller and Hildebrandt call it (Simplifying and Isolating Failure-Inducing Input,
IEEE TSE 28(2), 2002, definition 10). Their ddmin cuts a set into ever smaller parts, whatever the
order of its items. Where the order says what to suspect, a prefix that is bisected says more:
``bench/numerics/tune_search.py`` counts the trials of both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def smallest_sufficient(
    items: Sequence[T], suffices: Callable[[frozenset[T]], bool]
) -> tuple[T, ...]:
    """Return items that suffice together, and do not if any one of them is left out.

    First the 1, 2, 4, ... most suspicious are tried until they suffice, then what lies between the
    last two; the last item of the shortest prefix is needed. With it, the next needed one is the
    last of the shortest prefix of those before it, and so on: about two trials per needed item and
    doubling of the distance to the next. If more items never suffice less, no smaller part of the
    result suffices either. Where trials are not that well behaved, single items are left out as
    long as that is possible; a part that lacks two or more may suffice.

    Args:
        items: the most suspicious first, each once. All of them together suffice: the caller has
            tried that, and it is not tried again.
        suffices: a trial; it answers the same whenever it is asked the same. No set is tried twice.

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
    rest: tuple[T, ...] = tuple(items[:size])
    needed: tuple[T, ...] = ()
    fails = size // 2
    while rest:
        last = _last_needed(rest, needed, fails, enough)
        rest, needed = rest[:last], (rest[last], *needed)
        # One culprit is the most common, so it is worth a trial.
        if len(needed) == 1 and enough(needed):
            break
        rest, fails = _shortened(rest, needed, enough)
    return _one_minimal(needed, enough)


def _last_needed(
    rest: tuple[T, ...], needed: tuple[T, ...], fails: int, enough: Callable[[tuple[T, ...]], bool]
) -> int:
    """Return where the last item of the shortest prefix stands that suffices with what is needed.

    All of `rest` suffices, its first `fails` items do not.
    """
    holds = len(rest)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        fails, holds = (fails, middle) if enough(rest[:middle] + needed) else (middle, holds)
    return holds - 1


def _shortened(
    rest: tuple[T, ...], needed: tuple[T, ...], enough: Callable[[tuple[T, ...]], bool]
) -> tuple[tuple[T, ...], int]:
    """Drop the last 1, 2, 4, ... items as long as the others suffice with what is needed.

    Returns:
        What is left, and how many of its first items do not suffice; nothing if nothing is needed.
    """
    length, step = len(rest), 1
    while rest:
        shorter = max(length - step, 0)
        if not enough(rest[:shorter] + needed):
            return rest, shorter
        rest, step = rest[:shorter], 2 * step
    return rest, 0


def _one_minimal(kept: tuple[T, ...], enough: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Leave out items, one at a time, as long as the others suffice."""
    while True:
        without = (kept[:place] + kept[place + 1 :] for place in range(len(kept)))
        fewer = next((some for some in without if enough(some)), None)
        if fewer is None:
            return kept
        kept = fewer
