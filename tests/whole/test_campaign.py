"""Random programs train to the bits of eager PyTorch, or are refused at the call where they part.

The long campaign is a command: ``python -m bench.faithful.campaign --count 20000``.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest

from bench.faithful import campaign
from bench.faithful.changes import CHANGES, HOOKS
from bench.faithful.parts import PARTS

PART = 50


@pytest.mark.parametrize("first", range(0, 1000, PART))
def test_no_program_differs_without_a_word(first: int) -> None:
    found = campaign.campaign(iter(range(first, first + PART)))
    assert found.differing == []
    assert found.failed == []
    # A refusal is no success: most programs must train.
    assert found.same > 0.8 * PART


def test_the_programs_have_all_parts_and_changes() -> None:
    programs = [campaign.program(number) for number in range(1000)]
    assert {part for made in programs for part in made.parts} == {*PARTS}
    assert {name for made in programs for name, _ in made.hooks} == {*HOOKS}
    assert {name for made in programs for name, _ in made.changes.values()} == {*CHANGES}


def test_the_campaign_sees_a_step_that_differs() -> None:
    made = next(each for each in map(campaign.program, range(1000)) if not each.changes)
    with (
        patch.object(campaign, "STEPS", 3),
        patch.object(campaign, "_same_state", lambda *_: False),
    ):
        assert campaign.outcome_of(made)[0] == "differs"
