"""A table of needs: the first line that applies decides, the policy if none does."""

from __future__ import annotations

import pytest

from mpcompile.plan.needs import ANY, FREE, NARROW, Need, settled
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import Wish

GELU, POW = TORCH_RULES["gelu"], TORCH_RULES["pow"]
NEEDS: tuple[Need[str], ...] = (
    Need(ANY, lambda letters: "a" in letters, "any"),
    Need(FREE, lambda letters: "f" in letters, "free", POW),
    Need(NARROW, lambda letters: "n" in letters, lambda letters: f"narrow {letters}"),
)


@pytest.mark.parametrize(
    ("letters", "wish", "expected"),
    [
        ("", Wish.HALF, (GELU, Wish.HALF, "told")),
        ("f", Wish.HALF, (GELU, Wish.HALF, "told")),
        ("fn", Wish.HALF, (GELU, Wish.FULL, "narrow fn")),
        ("fn", Wish.FREE, (POW, Wish.FULL, "free")),
        ("fn", Wish.FULL, (GELU, Wish.FULL, "told")),
        ("anf", Wish.FULL, (GELU, Wish.FULL, "any")),
        ("anf", Wish.FREE, (GELU, Wish.FULL, "any")),
    ],
)
def test_the_first_line_that_applies_decides(
    letters: str, wish: Wish, expected: tuple[object, ...]
) -> None:
    assert settled(letters, (GELU, wish, "told"), NEEDS) == expected
