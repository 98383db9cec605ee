"""The smallest part of a set that still suffices, found by trials: delta debugging.

Zeller and Hildebrandt call such a part 1-minimal (Simplifying and Isolating Failure-Inducing Input,
IEEE TSE 28(2), 2002, definition 10). Their ddmin cuts a set into smaller and smaller parts, and
ignores the order of the items. Here the most suspicious items come first, so the search bisects
prefixes: ``bench/numerics/tune_search.py`` counts the trials of both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def smallest_sufficient(
    items: Sequence[T], suffices: Callable[[frozenset[T]], bool]
) -> tuple[T, ...]:
    """Return items that suffice together, but no longer if any one of them is left out.

    First the 1, 2, 4, ... most suspicious items are tried until they suffice. Then a bisection
    between the last two sizes finds the shortest prefix that suffices; its last item is needed. The
    next needed item is found in the same way among the items before it, and so on. This takes
    about two trials per needed item and per doubling of the distance to the next. If a superset of
    a sufficient set always suffices, no smaller part of the result suffices. Otherwise single items
    are left out as long as that is possible; a part that lacks two or more items may still suffice.

    Args:
        items: the most suspicious first, each once. All of them together suffice: the caller has
            tried that, and it is not tried again.
        suffices: a trial; the same set always gives the same answer. No set is tried twice.

    Returns:
        The needed items in the order of `items`; empty if none is needed.
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
        # A single culprit is the most common case, so it is worth a trial.
        if len(needed) == 1 and enough(needed):
            break
        rest, fails = _shortened(rest, needed, enough)
    return _one_minimal(needed, enough)


def _last_needed(
    rest: tuple[T, ...], needed: tuple[T, ...], fails: int, enough: Callable[[tuple[T, ...]], bool]
) -> int:
    """Return the index of the last item of the shortest sufficient prefix of `rest`.

    A prefix is tried together with the needed items. All of `rest` suffices; its first `fails`
    items do not.
    """
    holds = len(rest)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        fails, holds = (fails, middle) if enough(rest[:middle] + needed) else (middle, holds)
    return holds - 1


def _shortened(
    rest: tuple[T, ...], needed: tuple[T, ...], enough: Callable[[tuple[T, ...]], bool]
) -> tuple[tuple[T, ...], int]:
    """Drop the last 1, 2, 4, ... items as long as the others suffice with the needed items.

    Returns:
        The remaining items, and a number of first items that do not suffice; no items if no more
        are needed.
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
        without = (kept[:index] + kept[index + 1 :] for index in range(len(kept)))
        fewer = next((some for some in without if enough(some)), None)
        if fewer is None:
            return kept
        kept = fewer
