"""Who decided about an op: the policy's rules by themselves, an override, or a person in a plan.

A plan file records the author only in the reason of a decision, a sentence for people. So the
beginning of this sentence is defined once, here, for the code that writes it or reads it back.
"""

from __future__ import annotations

from enum import Enum


class Author(Enum):
    """The way in which a person decided instead of the rules; the value begins the reason."""

    OVERRIDE = "the policy's"
    PLAN = "set in the plan"

    def __str__(self) -> str:
        return self.value


def author_of(reason: str) -> Author | None:
    """Return the author of a decision's reason; None for the rules and the planner."""
    return next((author for author in Author if reason.startswith(author.value)), None)
