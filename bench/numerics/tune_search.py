"""Compare delta debugging with bisecting a prefix, by trials and by returned ops.

``python -m bench.numerics.tune_search [--seed 0] [--count 200] [--ops 75]``

Plants faults: a few of the ops must all be FP32. All searches get the ops in the same order of
suspicion. In it a culprit has the first free rank with a given probability, else a random rank.
ddmin ignores the order. Bisecting finds the shortest prefix that suffices, like tools that search
how many of the first layers must be FP32. No count includes the two trials of no op and all ops.
This needs no torch: a trial is a test of a set. Prints a Markdown table of means.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from statistics import mean

from mpcompile.search.delta_debugging import smallest_sufficient

CULPRITS = (1, 2, 3, 5, 8)
TRUST = (1.0, 0.9, 0.5, 0.0)
"""Probabilities that the next culprit is the most suspicious of the remaining ops."""


def order_of(ops: int, culprits: int, trust: float, dice: random.Random) -> list[int]:
    """Return ops in the order of suspicion; ops with numbers below `culprits` are culprits."""
    left, others = list(range(culprits)), list(range(culprits, ops))
    dice.shuffle(others)
    lost = [op for op in left if dice.random() >= trust]
    order = [op for op in left if op not in lost] + others
    for op in lost:
        order.insert(dice.randrange(len(order) + 1), op)
    return order


def bisected(items: Sequence[int], suffices: Callable[[frozenset[int]], bool]) -> tuple[int, ...]:
    """Return the shortest prefix that suffices; the empty one does not, the whole does."""
    fails, holds = 0, len(items)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if suffices(frozenset(items[:middle])):
            holds = middle
        else:
            fails = middle
    return tuple(items[:holds])


def ddmin(items: Sequence[int], suffices: Callable[[frozenset[int]], bool]) -> tuple[int, ...]:
    """Return the result of ddmin (Zeller and Hildebrandt 2002, figure 5); try no set twice."""
    enough = cache(suffices)
    kept, count = tuple(items), 2
    while len(kept) > 1:
        borders = [len(kept) * part // count for part in range(count + 1)]
        parts = [frozenset(kept[start:end]) for start, end in pairwise(borders)]
        part = next((part for part in parts if enough(part)), None)
        if part is not None:
            kept, count = tuple(item for item in kept if item in part), 2
            continue
        dropped = next((part for part in parts if enough(frozenset(kept) - part)), None)
        if dropped is not None:
            kept, count = tuple(item for item in kept if item not in dropped), max(count - 1, 2)
        elif count == len(kept):
            break
        else:
            count = min(2 * count, len(kept))
    return kept


Search = Callable[[Sequence[int], Callable[[frozenset[int]], bool]], tuple[int, ...]]


def measured(search: Search, order: list[int], culprits: int) -> tuple[int, int]:
    """Return how many trials a search needs, and how many ops it returns."""
    needed = frozenset(range(culprits))
    asked: list[frozenset[int]] = []

    def suffices(some: frozenset[int]) -> bool:
        asked.append(some)
        return needed <= some

    found = search(order, suffices)
    return len([some for some in asked if some]), len(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--ops", type=int, default=75)
    given = parser.parse_args()
    searches: dict[str, Search] = {
        "ours": smallest_sufficient,
        "ddmin": ddmin,
        "bisecting": bisected,
    }
    heads = [f"{what}, {name}" for name in searches for what in ("trials", "ops")]
    print(f"| culprits | in order | {' | '.join(heads)} |")
    print(f"|{'---:|' * (2 + len(heads))}")
    for culprits in CULPRITS:
        for trust in TRUST:
            dice = random.Random(f"{given.seed} {culprits} {trust}")
            orders = [order_of(given.ops, culprits, trust, dice) for _ in range(given.count)]
            cells = [f"{culprits}", f"{trust:.0%}"]
            for search in searches.values():
                pairs = [measured(search, order, culprits) for order in orders]
                cells += [f"{mean(pair[k] for pair in pairs):.1f}" for k in (0, 1)]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
