"""The check that what a program reads in dictionaries, lists, sets and functions is as before."""

from __future__ import annotations

from collections import deque
from operator import is_
from typing import Any

import torch

from mpcompile.program.proof.held import Held, look
from mpcompile.program.proof.left_places import LeftPlaces
from mpcompile.program.proof.surroundings import Surroundings
from mpcompile.torch_private.dictionary_words import WatchedDictionaries
from mpcompile.torch_private.guarding import dict_version
from mpcompile.torch_private.modules import HOOKS, MEMBERS
from mpcompile.train.changes.changing_numbers import ChangingNumbers
from mpcompile.train.changes.situation import is_atom, token


class GuardedValues:
    """What a program can read beside its tensors, when it was last looked at.

    Args:
        found: all that it can read.
        numbers: the numbers that change; those that are inputs may have any value.
        left: where the program leaves tensors; these are not compared.

    Attributes:
        hooks: the dictionaries of the hooks of modules that have some.
    """

    def __init__(self, found: Surroundings, numbers: ChangingNumbers, left: LeftPlaces) -> None:
        inputs = {(id(place.holder), place.key) for place in numbers.inputs.values()}
        self._numbers, self._kinds = numbers, numbers.kinds()
        held: dict[int, list[Held]] = {}
        for item in found.held:
            if (id(item.holder), item.key) not in inputs:
                held.setdefault(id(item.holder), []).append(item)
        with_inputs = {holder for holder, _ in inputs}
        members, hooks = _parts_of_modules(found)
        self.hooks: list[dict[Any, Any]] = []
        self._seldom: list[_Entries] = []
        self._often: list[_Entries] = []  # dictionaries in which an input changes
        self._parts: list[tuple[Any, int, list[Held]]] = []
        self._alike: list[dict[Any, Any]] = []
        self._empty: list[dict[Any, Any]] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._sets: list[tuple[Any, Any]] = []
        watched: set[int] = set()
        for holder in found.holders:
            value = holder.value
            if holder.keys is None and isinstance(value, dict):
                watched.add(id(value))
                others = left.keys_in(value)
                if id(value) in hooks:
                    if value:
                        self.hooks.append(value)
                elif value and id(value) in members and not any(map(is_single, value.values())):
                    self._alike.append(value)
                elif value or others:
                    entries = _Entries(value, held.get(id(value), []), others)
                    (self._often if id(value) in with_inputs else self._seldom).append(entries)
                else:
                    self._empty.append(value)
            elif isinstance(value, list | deque):
                watched.add(id(value))
                if id(value) in with_inputs:
                    self._parts.append((value, len(value), held.get(id(value), [])))
                else:
                    self._lists.append((value, list(value)))
            elif isinstance(value, set):
                self._sets.append((value, set(value)))
        self._note_single(found, held, watched)
        self._copies = list(map(dict, self._alike))
        self._members = WatchedDictionaries([*self._alike, *self._empty], only_at_once=True)
        self._dicts = WatchedDictionaries([entries.held for entries in self._seldom])

    def _note_single(
        self, found: Surroundings, held: dict[int, list[Held]], watched: set[int]
    ) -> None:
        """Note values that no container holds: of cells, globals, objects with slots, defaults."""
        single: list[Held] = []
        for items in held.values():
            if id(items[0].holder) not in watched and not isinstance(items[0].holder, tuple):
                single += items
        # Defaults of functions: the tuple itself is replaced.
        functions = [holder.value for holder in found.holders if callable(holder.value)]
        names = ("__defaults__", "__kwdefaults__")
        self._single = [
            (item.holder, item.key, item.value) for item in single if item.holder is not None
        ] + [
            (function, name, getattr(function, name))
            for function in functions
            if not isinstance(function, type)
            for name in names
            if hasattr(function, name)
        ]
        self._holders = [holder for holder, _, _ in self._single]
        self._keys = [key for _, key, _ in self._single]
        self._values = [value for _, _, value in self._single]

    def note(self) -> None:
        """Take the values of dictionaries as those of before, because the step has written them."""
        self._dicts.note()
        for entries in self._often:
            entries.note()

    def hold(self) -> bool:
        """Whether all values are those of before, by identity and by the versions of dicts."""
        return (
            self._dicts.hold()
            and not (self._often and not all(entries.hold() for entries in self._often))
            and self._inputs_hold()
            and self._members_hold()
            and all(map(is_, map(look, self._holders, self._keys), self._values))
            and not (self._lists and not all(map(_same_items, *zip(*self._lists, strict=True))))
            and not (self._sets and any(value != was for value, was in self._sets))
        )

    def hold_by_value(self) -> bool:
        """Compare values instead of identities, and note the new identities if all are equal."""
        if not self._members_hold() or any(value != was for value, was in self._sets):
            return False
        if not self._inputs_hold() or not all(
            entries.are_same() for entries in (*self._seldom, *self._often)
        ):
            return False
        for holder, key, value in self._single:
            if not _unchanged(value, look(holder, key)):
                return False
        for value, was in self._lists:
            if len(value) != len(was) or not all(map(_unchanged, was, value)):
                return False
        self.note()
        self._values = [look(holder, key) for holder, key, _ in self._single]
        self._lists = [(value, list(value)) for value, _ in self._lists]
        return True

    def _members_hold(self) -> bool:
        """Whether modules have the parameters, buffers and submodules of before."""
        if self._members.hold():
            return True
        if any(self._empty) or not alike(self._alike, self._copies):
            return False
        self._members.note()
        return True

    def _inputs_hold(self) -> bool:
        """Whether inputs still are numbers of their types, and all beside them is unchanged."""
        if self._kinds and self._numbers.kinds() != self._kinds:
            return False
        return not self._parts or all(
            len(value) == length
            and all(_unchanged(item.value, look(value, item.key)) for item in items)
            for value, length, items in self._parts
        )


class _Entries:
    """The entries of a dictionary that count.

    Args:
        held: the dictionary.
        items: the values that count.
        others: keys that do not count.
    """

    def __init__(self, held: dict[Any, Any], items: list[Held], others: set[Any]) -> None:
        self.held, self._others = held, others
        self._names = [item.key for item in items]
        self._values = [item.value for item in items]
        self._keys = [key for key in held if key not in others]
        self._version = dict_version(held)

    def note(self) -> None:
        """Take the dictionary's present entries as those of before."""
        self._version = dict_version(self.held)

    def hold(self) -> bool:
        """Whether the entries are those of before; they are compared only after a write."""
        version = dict_version(self.held)
        if version == self._version:
            return True
        if not self.are_same():
            return False
        self._version = version
        return True

    def are_same(self) -> bool:
        """Whether there are the same keys beside those that do not count, and the same values."""
        now, others = self.held, self._others
        if ([key for key in now if key not in others] if others else list(now)) != self._keys:
            return False
        found = map(now.get, self._names)
        return all(map(is_, found, self._values)) or all(
            map(_unchanged, self._values, map(now.get, self._names))
        )


def alike(now: Any, before: Any) -> bool:
    """Whether two lists hold the same tensors of several elements.

    Python compares two values by identity first. Only another tensor is compared by value, and that
    raises, because it has more than one element.
    """
    try:
        return bool(now == before)
    except (RuntimeError, TypeError, ValueError):
        return False


def is_single(value: Any) -> bool:
    """Whether a value is a tensor that `alike` compares by value."""
    return isinstance(value, torch.Tensor) and value.numel() <= 1


def _parts_of_modules(found: Surroundings) -> tuple[set[int], set[int]]:
    """Return the ids of the dictionaries of all modules' members, and of those of their hooks."""
    modules = [
        holder.value
        for holder in found.holders
        if isinstance(holder.value, dict) and "_modules" in holder.value
    ]
    return (
        {id(module[name]) for module in modules for name in MEMBERS},
        {id(module[name]) for module in modules for name in HOOKS},
    )


def _same_items(now: Any, before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _unchanged(before: Any, now: Any) -> bool:
    return before is now or (is_atom(before) and is_atom(now) and token(before) == token(now))
