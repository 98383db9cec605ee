"""Arithmetic on Python numbers whose values are known when a graph runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Formula:
    """Arithmetic on named numbers, as the program does it.

    Attributes:
        target: a Python operator.
        operands: formulas, names of numbers and numbers.
    """

    target: Callable[..., Any]
    operands: tuple[Known, ...]

    def options(self) -> frozenset[str]:
        """Return the names of the numbers that it reads."""
        names = frozenset(item for item in self.operands if isinstance(item, str))
        return names.union(*(i.options() for i in self.operands if isinstance(i, Formula)))


Known: TypeAlias = Formula | str | float
"""A formula, the name of a number, or a number."""


def evaluate(known: Known, options: Mapping[str, float]) -> Any:
    """Return the value of a formula, a name or a number."""
    if isinstance(known, Formula):
        return known.target(*(evaluate(item, options) for item in known.operands))
    return options[known] if isinstance(known, str) else known


@dataclass(frozen=True, slots=True)
class Guard:
    """A comparison of numbers by which the program decided in Python when it was traced.

    Attributes:
        condition: the comparison.
        answer: its result.
    """

    condition: Formula
    answer: bool

    def holds(self, options: Mapping[str, float]) -> bool:
        """Whether it has the same result with other numbers."""
        return bool(evaluate(self.condition, options)) is self.answer
