"""Random programs of sensitive ops are as near to FP64 as autocast; the bench tries more."""

from __future__ import annotations

import pytest

from bench.numerics.random_values import EVERY, campaign
from bench.numerics.table_ops import table_ops


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_no_program_is_farther_from_fp64_than_three_times_autocast(first: int) -> None:
    found = dict(campaign(range(first, first + 250)))
    assert len(found) > 200
    assert {seed: outcome for seed, outcome in found.items() if outcome.wrong} == {}


def test_the_2000_programs_draw_each_op_that_can_be_called() -> None:
    assert 550 < len(table_ops()) <= 2000 // EVERY
