"""How many trials delta debugging takes, and how much it returns, beside bisecting a prefix.

``PYTHONPATH=. python bench/tune_search.py [--seed 0] [--count 200] [--ops 75]``

Plants faults: a few of the ops must all be FP32. Both searches get the ops in the same order of
suspicion, in which each culprit is the first that is left with a given probability, and otherwise
anywhere. Bisecting finds the shortest prefix of the order that suffices, as tools do that ask how
many of the first layers must be FP32. Neither count holds the two trials of nothing and everything.
No torch: a trial is a look at a set. Prints a Markdown table of means.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from statistics import mean

from mpcompile.delta_debugging import smallest_sufficient

CULPRITS = (1, 2, 3, 5, 8)
TRUST = (1.0, 0.9, 0.5, 0.0)
"""How likely the next culprit is the most suspicious op that is left."""


def order_of(ops: int, culprits: int, trust: float, dice: random.Random) -> list[int]:
    """Return ops in the order of suspicion; the culprits are those below `culprits`."""
    left, others = list(range(culprits)), list(range(culprits, ops))
    dice.shuffle(others)
    lost = [op for op in left if dice.random() >= trust]
    order = [op for op in left if op not in lost] + others
    for op in lost:
        order.insert(dice.randrange(len(order) + 1), op)
    return order


def bisected(items: Sequence[int], suffices: Callable[[frozenset[int]], bool]) -> tuple[int, ...]:
    """Return the shortest prefix that suffices, where nothing does not and everything does."""
    fails, holds = 0, len(items)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if suffices(frozenset(items[:middle])):
            holds = middle
        else:
            fails = middle
    return tuple(items[:holds])


Search = Callable[[Sequence[int], Callable[[frozenset[int]], bool]], tuple[int, ...]]


def measured(search: Search, order: list[int], culprits: int) -> tuple[int, int]:
    """Return how many trials a search takes, and how many ops it returns."""
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
    print("| culprits | in order | trials, ours | ops, ours | trials, bisecting | ops, bisecting |")
    print("|---:|---:|---:|---:|---:|---:|")
    for culprits in CULPRITS:
        for trust in TRUST:
            dice = random.Random(f"{given.seed} {culprits} {trust}")
            orders = [order_of(given.ops, culprits, trust, dice) for _ in range(given.count)]
            cells = [f"{culprits}", f"{trust:.0%}"]
            for search in (smallest_sufficient, bisected):
                pairs = [measured(search, order, culprits) for order in orders]
                cells += [f"{mean(pair[k] for pair in pairs):.1f}" for k in (0, 1)]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
