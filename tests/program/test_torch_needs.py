"""The tables of needs of a torch graph: every line decides about something, and in this order."""

from __future__ import annotations

import pytest
import torch

from mpcompile.plan.needs import settled
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import Wish
from mpcompile.program.needs import BORDER_NEEDS, NEEDS, SINGLE, Facts

RULE = TORCH_RULES["softmax"]
LIBRARY = "a library call that computes and writes FP32"
MADE = "made in FP32, not computed from anything"


@pytest.mark.parametrize(
    ("facts", "free", "half"),
    [
        (Facts(("x",), ("y",), 8, library_call=False), None, None),
        (Facts(("x",), ("y",), 1, library_call=False), SINGLE, None),
        (Facts(("x",), ("y",), 8, library_call=True), LIBRARY, None),
        (Facts((), ("y",), 8, library_call=False), MADE, MADE),
        # Of two lines that apply the first one decides.
        (Facts(("x",), ("y",), 1, library_call=True), SINGLE, None),
        (Facts((), ("y",), 8, library_call=True), LIBRARY, MADE),
        (Facts((), ("y",), 1, library_call=True), SINGLE, MADE),
        # An op without FP32 results is nothing that could be stored.
        (Facts((), (), 0, library_call=False), None, None),
    ],
)
def test_an_op_has_the_first_need_that_applies(
    facts: Facts, free: str | None, half: str | None
) -> None:
    for wish, reason in ((Wish.FREE, free), (Wish.HALF, half), (Wish.FULL, None)):
        expected = (RULE, wish, "told") if reason is None else (RULE, Wish.FULL, reason)
        assert settled(facts, (RULE, wish, "told"), NEEDS) == expected


def test_a_border_of_single_numbers_needs_fp32() -> None:
    told = (RULE, Wish.FREE, "told")
    for shapes, reason in ((((), (1,)), SINGLE), (((), (4, 8)), "told")):
        values = [torch.empty(shape) for shape in shapes]
        assert settled(values, told, BORDER_NEEDS)[2] == reason
