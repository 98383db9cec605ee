"""Random programs of sensitive ops are as near to FP64 as autocast; the bench tries more."""

from __future__ import annotations

import pytest

from bench.numerics.random_values import EVERY, campaign, outcome_of
from bench.numerics.table_ops import table_ops


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_no_program_is_farther_from_fp64_than_three_times_autocast(first: int) -> None:
    found = dict(campaign(range(first, first + 250)))
    assert len(found) > 200
    assert {seed: outcome for seed, outcome in found.items() if outcome.wrong} == {}


@pytest.mark.parametrize("seed", [106925, 110834, 111823])
def test_programs_of_the_long_campaign_that_were_wrong_once(seed: int) -> None:
    outcome = outcome_of(seed)
    assert outcome is not None
    assert not outcome.wrong, outcome


def test_the_2000_programs_draw_each_op_that_can_be_called() -> None:
    assert 550 < len(table_ops()) <= 2000 // EVERY
