"""Python numbers of a program that change from call to call, and become inputs of its graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, TypeAlias

import torch

from mpcompile.errors import ChangingNumber, CompileError, warn
from mpcompile.program.numbers.inputs import NumberInputs, NumberPlace, NumberRefused
from mpcompile.program.proof.held import Held
from mpcompile.step.transformed import Transformed

CHANGES = 2
"""After so many new values of a number the step tries to make it an input."""

MANY_VALUES = 8
"""After so many new values of a number that is no input the user is told what to do."""

_Batch: TypeAlias = Sequence[torch.Tensor]
_Open: TypeAlias = tuple[bool, ...]

ForBatch: TypeAlias = Callable[[_Batch, _Open, tuple[NumberPlace, ...]], Transformed]
"""Transforms the program as it is now for a batch, with some of its numbers as inputs; the flags
say which tensors have an open batch size."""


class NotAsInputs(Exception):
    """The program cannot be captured with its numbers as inputs.

    Attributes:
        names: the places of the numbers to blame; empty if they are not known.
    """

    def __init__(self, why: str, names: frozenset[str] = frozenset()) -> None:
        super().__init__(why)
        self.names = names


class ChangingNumbers:
    """Which numbers are inputs, and which of them cannot be.

    If several numbers change at once, the program cannot be captured with all of them as inputs,
    and it is not known which is to blame, then each is tried alone when it changes again.

    Attributes:
        inputs: the numbers that are inputs: each place by its name.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, NumberPlace] = {}
        self._changes: Counter[str] = Counter()
        self._held: Sequence[Held] = ()
        self._alone: set[str] = set()
        self._refused: set[str] = set()
        self._trial: tuple[str, ...] = ()

    def locate(self, held: Sequence[Held]) -> None:
        """Find the places again among all that the program can read."""
        self._held = held
        self.inputs = _places(held, self.inputs)

    def values(self) -> dict[str, float]:
        """Return the present values of the inputs by place."""
        return {name: place.number() for name, place in self.inputs.items()}

    def kinds(self) -> list[type]:
        """Return the types of the values: an int that becomes a float is another program."""
        return [type(place.number()) for place in self.inputs.values()]

    def admit(self, names: Iterable[str]) -> bool:
        """Count new values of numbers; return whether some of these are inputs from now on.

        Warns with `ChangingNumber` of each number with many values.
        """
        changed = list(names)
        self._changes.update(changed)
        wanted = [
            name for name in changed if self._changes[name] >= CHANGES and name not in self._refused
        ]
        found = _places(self._held, wanted)
        together = {name: place for name, place in found.items() if name not in self._alone}
        self._trial = tuple(together or list(found)[:1])
        self.inputs |= {name: found[name] for name in self._trial}
        for name in changed:
            if self._changes[name] == MANY_VALUES and name not in self.inputs:
                warn(
                    f"{name} has had {MANY_VALUES} other values, and the step was captured again "
                    "for each; store the number in a buffer and write to that, or pass it in the "
                    "batch as a tensor",
                    ChangingNumber,
                )
        return bool(self._trial)

    def give_up(self, why: NotAsInputs) -> str:
        """Make numbers constants again: those to blame, or those tried last, or all.

        Returns:
            Their names and the reason.
        """
        names = tuple(sorted(why.names)) or self._trial or tuple(self.inputs)
        self._trial = tuple(name for name in self._trial if name not in names)
        self.inputs = {name: place for name, place in self.inputs.items() if name not in names}
        known = bool(why.names) or len(names) == 1
        (self._refused if known else self._alone).update(names)
        return f"{', '.join(names)} cannot be an input ({why})"

    def given_to(self, transform: ForBatch) -> Callable[[_Batch, _Open], Transformed]:
        """Return a function that transforms the program with these inputs.

        It raises NotAsInputs where the program cannot be transformed with them.
        """

        def for_batch(batch: _Batch, is_open: _Open) -> Transformed:
            numbers = tuple(self.inputs.values())
            try:
                made = transform(batch, is_open, numbers)
            except CompileError as error:
                if not numbers:
                    raise
                names = error.names if isinstance(error, NumberRefused) else frozenset()
                raise NotAsInputs(error.what, names) from error
            self._trial = ()
            return made

        return for_batch


class BoundNumbers:
    """The numbers that one graph reads."""

    def __init__(self, given: NumberInputs | None) -> None:
        self._given = given or NumberInputs()
        self._seen: list[float] = []

    def admits(self, numbers: Mapping[str, float]) -> bool:
        """Whether the graph is right for these numbers."""
        return not self._given.guards or self._given.admits(numbers)

    def hand_over(self, numbers: Mapping[str, float]) -> None:
        """Write the numbers that have changed since the last call; nothing waits for a device."""
        if not self._given.tensors:
            return
        now = list(numbers.values())
        if len(now) != len(self._seen) or not all(map(is_, now, self._seen)):
            self._given.hand_over(numbers)
            self._seen = now


def _places(held: Iterable[Held], names: Iterable[str]) -> dict[str, NumberPlace]:
    """Return the place of each name that has one and where another object can be put.

    An attribute of an object hides that of its class, which has the same name.
    """
    found: dict[str, dict[tuple[int, Any], Held]] = {name: {} for name in names}
    for item in held if found else ():
        if item.path in found:
            found[item.path][id(item.holder), item.key] = item
    places = {}
    for name, several in found.items():
        items = list(several.values())
        if len(items) > 1:
            items = [item for item in items if not isinstance(item.holder, type)]
        if len(items) == 1 and type(items[0].value) in (int, float):
            holder, key = items[0].holder, items[0].key
            if not isinstance(holder, tuple):
                places[name] = NumberPlace(name, holder, key)
    return places
