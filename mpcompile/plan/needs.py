"""What an op needs before the policy's wish counts: FP32, by an ordered table of conditions.

A describer knows facts that no policy knows: a single number saves nothing, a kernel is missing.
Its table holds one `Need` a line. The first line that applies decides, so the order of the lines is
part of the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mpcompile.plan.op_table import Rule, Wish

Facts = TypeVar("Facts")

FREE = frozenset((Wish.FREE,))
"""The need decides where the policy leaves the choice to the planner."""

NARROW = frozenset((Wish.FREE, Wish.HALF))
"""The need also holds against a wish for 16 bits, such as an override."""

ANY = frozenset(Wish)
"""The need also gives its own reason where the policy wants FP32 anyway."""


@dataclass(frozen=True, slots=True)
class Need(Generic[Facts]):
    """One line: an op of which a condition is true stays in FP32.

    Attributes:
        over: the policy's wishes that it comes before.
        when: the condition, on what a describer knows of the op.
        reason: the sentence that a report prints, or what makes it from the facts.
        row: the row of the op table that is meant then; None: the op's own.
    """

    over: frozenset[Wish]
    when: Callable[[Facts], bool]
    reason: str | Callable[[Facts], str]
    row: Rule | None = None


def settled(
    facts: Facts, told: tuple[Rule, Wish, str], needs: tuple[Need[Facts], ...]
) -> tuple[Rule, Wish, str]:
    """Return an op's row of the op table, its wish and the reason.

    Args:
        facts: what the describer knows of the op.
        told: what the policy says.
        needs: the table; its first line that applies decides, and the policy if none does.
    """
    rule, wish, _ = told
    for need in needs:
        if wish in need.over and need.when(facts):
            reason = need.reason if isinstance(need.reason, str) else need.reason(facts)
            return need.row or rule, Wish.FULL, reason
    return told
