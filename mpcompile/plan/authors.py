"""Who decided about an op: the policy's rules by themselves, an override, or a person in a plan.

A plan file holds no other trace of it than the reason of the decision, a sentence for people. So
how such a sentence begins is stated once, here, for those who write it and for who reads it back.
"""

from __future__ import annotations

from enum import Enum


class Author(Enum):
    """A person who decided against or beside the rules; the value begins the reason."""

    OVERRIDE = "the policy's"
    PLAN = "set in the plan"

    def __str__(self) -> str:
        return self.value


def author_of(reason: str) -> Author | None:
    """Return who gave a decision's reason; None: the rules and the planner did."""
    return next((author for author in Author if reason.startswith(author.value)), None)
