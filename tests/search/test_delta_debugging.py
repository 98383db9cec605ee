"""Delta debugging against brute force, over predicates of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from mpcompile.search.delta_debugging import smallest_sufficient

Set = frozenset[int]


class Trials:
    """A predicate that records its arguments."""

    def __init__(self, holds: Callable[[Set], bool]) -> None:
        self._holds = holds
        self.asked: list[Set] = []

    def __call__(self, some: Set) -> bool:
        self.asked.append(some)
        return self._holds(some)


def subsets(count: int) -> list[Set]:
    return [
        frozenset(some) for size in range(count + 1) for some in combinations(range(count), size)
    ]


def of_causes(causes: list[Set]) -> Callable[[Set], bool]:
    """Return a monotone predicate: a set suffices if it contains one of the causes."""
    return lambda some: any(cause <= some for cause in causes)


@st.composite
def monotone(draw: st.DrawFn) -> tuple[int, list[Set]]:
    count = draw(st.integers(1, 8))
    some = st.frozensets(st.integers(0, count - 1), max_size=count)
    return count, draw(st.lists(some, min_size=1, max_size=4))


@given(monotone(), st.randoms())
def test_no_part_of_the_result_suffices_for_a_monotone_predicate(
    made: tuple[int, list[Set]], dice: random.Random
) -> None:
    count, causes = made
    trials = Trials(of_causes(causes))
    items = list(range(count))
    dice.shuffle(items)
    found = smallest_sufficient(items, trials)
    assert trials(frozenset(found))
    assert not any(of_causes(causes)(some) for some in subsets(count) if some < frozenset(found))
    minimal = [cause for cause in causes if not any(other < cause for other in causes)]
    assert frozenset(found) in minimal
    assert list(found) == [item for item in items if item in found]
    if len(minimal) == 1 or min(map(len, minimal)) == len(found):
        assert len(found) == min(len(some) for some in subsets(count) if of_causes(causes)(some))


@given(st.integers(1, 7), st.integers(0), st.sampled_from([0.02, 0.2, 0.5, 0.9]))
def test_no_item_of_the_result_can_be_left_out_for_any_predicate(
    count: int, seed: int, share: float
) -> None:
    dice = random.Random(seed)
    full = frozenset(range(count))
    table = {some: dice.random() < share for some in subsets(count)} | {full: True}
    trials = Trials(table.__getitem__)
    found = frozenset(smallest_sufficient(range(count), trials))
    assert table[found]
    assert not any(table[found - {item}] for item in found)
    assert len(trials.asked) == len(set(trials.asked))
    assert full not in trials.asked


@given(st.integers(1, 200), st.data())
def test_one_cause_is_found_in_about_twice_its_logarithm_of_trials(
    count: int, data: st.DataObject
) -> None:
    cause = data.draw(st.integers(0, count - 1))
    trials = Trials(lambda some: cause in some)
    assert smallest_sufficient(range(count), trials) == (cause,)
    assert len(trials.asked) <= 2 * count.bit_length() + 2


def test_the_most_suspicious_item_is_tried_first_and_alone_if_it_is_the_cause() -> None:
    trials = Trials(lambda some: 7 in some)
    assert smallest_sufficient([7, 3, 9], trials) == (7,)
    assert trials.asked == [frozenset(), frozenset({7})]


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_most_suspicious_culprits_cost_one_trial_each(culprits: int, others: int) -> None:
    needed = frozenset(range(culprits))
    trials = Trials(lambda some: needed <= some)
    assert smallest_sufficient(range(culprits + others), trials) == tuple(range(culprits))
    assert len(trials.asked) <= 2 * culprits.bit_length() + culprits + 2


def test_no_item_is_returned_if_none_is_needed_and_all_if_all_are() -> None:
    assert smallest_sufficient(range(5), lambda _: True) == ()
    assert smallest_sufficient((), lambda _: True) == ()
    everything = frozenset(range(11))
    assert smallest_sufficient(range(11), lambda some: some == everything) == tuple(range(11))
