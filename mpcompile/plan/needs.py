"""Conditions under which an op needs FP32 before the policy's wish counts: an ordered table.

A describer knows facts that a policy does not know: a single number saves nothing, a kernel is
missing. Its table holds one `Need` per line. The first line that applies decides, so the order of
the lines is part of the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mpcompile.plan.rule import Rule, Wish

Facts = TypeVar("Facts")

FREE = frozenset((Wish.FREE,))
"""The need decides if the policy leaves the choice to the planner."""

NARROW = frozenset((Wish.FREE, Wish.HALF))
"""The need also holds against a wish for 16 bits, such as an override."""

ANY = frozenset(Wish)
"""The need also gives its own reason if the policy wants FP32 anyway."""


@dataclass(frozen=True, slots=True)
class Need(Generic[Facts]):
    """One line: an op stays in FP32 if a condition is true of it.

    Attributes:
        over: the policy's wishes that it overrides.
        when: the condition, on the facts that a describer knows about the op.
        reason: the sentence that a report prints, or a function that makes it from the facts.
        row: the row of the op table that the op then has; None: its own.
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
        facts: the facts that the describer knows about the op.
        told: row, wish and reason by the policy.
        needs: the table; its first line that applies decides, or the policy if no line applies.
    """
    rule, wish, _ = told
    for need in needs:
        if wish in need.over and need.when(facts):
            reason = need.reason if isinstance(need.reason, str) else need.reason(facts)
            return need.row or rule, Wish.FULL, reason
    return told
