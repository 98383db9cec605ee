"""The check, before each call of a step, that nothing it was compiled from has changed.

The check runs over lists that were collected before, with functions of C only, because it is part
of every call. It looks at identities and at version numbers of dictionaries. If it fails, the
values are compared, and only if one differs is the program walked over again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter, is_
from typing import Any, TypeAlias

import torch

from mpcompile.lower.programs import Program
from mpcompile.program.capture import Forward
from mpcompile.program.proof.held import Held, look
from mpcompile.program.proof.left_places import LeftPlaces
from mpcompile.program.proof.surroundings import Surroundings, only_tensors
from mpcompile.program.returned import Left
from mpcompile.program.workload import Workload
from mpcompile.step.ways import Way
from mpcompile.torch_private.guarding import (
    dict_version,
    hooks_made,
    settings_guard,
    step_hook_lists,
    tensor_hook_lists,
)
from mpcompile.torch_private.modules import HOOKS, MEMBERS
from mpcompile.torch_private.tensor_words import never, watch
from mpcompile.train.changing_numbers import ChangingNumbers, NotAsInputs
from mpcompile.train.situation import Situation, is_atom, settings, situation_of, token

_Batch: TypeAlias = Sequence[torch.Tensor]
_needs_gradient = attrgetter("requires_grad")


class Guard:
    """What a step was compiled from, and a fast check of it.

    Args:
        model: the model of the step.
        loss: its loss.
        optimizer: its optimizer.
        left: what the program leaves in places of the user's objects; these are not checked.
        way: see below.

    Attributes:
        situation: what of the program counts for its graphs, when it was last looked at.
        way: the way that a program in pieces took last; None: it is one graph. Dynamo runs a
            program in pieces, and its own guards check all but the tensors.
        numbers: the numbers that change; those that are inputs may have any value.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Callable[..., Any] | None,
        optimizer: torch.optim.Optimizer,
        left: Left | None = None,
        way: Way | None = None,
    ) -> None:
        self.way = way
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._left = LeftPlaces(left)
        self.numbers = ChangingNumbers()
        self.look()

    @classmethod
    def of(cls, workload: Workload, forward: Forward) -> Guard:
        """Return the guard of a workload with an optimizer."""
        assert workload.optimizer is not None
        way = forward.in_pieces.way if forward.in_pieces is not None else None
        return cls(workload.model, workload.loss, workload.optimizer, forward.left, way)

    def look(self) -> Situation:
        """Walk over the program again, note what is there now, and return it."""
        found = self._left.surroundings(self._model, self._loss)
        found = found if self.way is None else only_tensors(found)
        self.numbers.locate(found.held)
        inputs = self.numbers.inputs
        self.situation = situation_of(found, self._model, self._optimizer, inputs)
        if self.way is not None:
            self.situation = self.situation.on_way(self.way)
        self._note(found)
        return self.situation

    def peek(self) -> Situation:
        """Return what the program is now, all numbers by value, without noting it."""
        if self.way is not None or not self.holds():
            found = self._left.surroundings(self._model, self._loss)
            return situation_of(found, self._model, self._optimizer)
        values = self.numbers.values()
        if not values:
            return self.situation
        facts = tuple((name, token(value)) for name, value in values.items())
        return replace(self.situation, program=self.situation.program + facts)

    def made(self, transform: Callable[[_Batch, Situation], Program], batch: _Batch) -> Program:
        """Transform the program; numbers that cannot be inputs are constants from then on."""
        try:
            return transform(batch, self.situation)
        except NotAsInputs as why:
            self.numbers.give_up(why)
        self.look()
        return self.made(transform, batch)

    def leave(self, left: Left, values: Sequence[Any]) -> None:
        """Put what a call leaves behind into the user's objects; the check stays as it was."""
        if self._left.add(left):
            self.look()
        self._left.put(left, values)
        self._versions = list(map(dict_version, self._dicts))

    def reject(self, situation: Situation) -> None:
        """Go back to an earlier situation, because a step cannot follow what was found."""
        self.situation = situation
        self._rejected = True

    def holds(self) -> bool:
        """Whether everything that counts is as it was when last looked at."""
        return not self._rejected and (
            (
                self._tensors_hold()
                and self._settings()
                and self._values_hold()
                and self._hooks_hold()
            )
            or self._holds_by_value()
        )

    def moved(self) -> list[torch.Tensor]:
        """Return the tensors in another storage than before; `accept` notes it."""
        now = map(torch.Tensor.data_ptr, self._tensors)
        pairs = zip(self._tensors, now, self._places, strict=True)
        return [tensor for tensor, place, before in pairs if place != before]

    def state_was_replaced(self) -> bool:
        """Whether entries of the optimizer's state are new or gone; `accept` notes it."""
        state = self._optimizer.state
        return state is not self._state or dict_version(state) != self._state_version

    def accept(self) -> None:
        """Note the present storage of tensors, entries of the optimizer's state, and hooks."""
        self._places = list(map(torch.Tensor.data_ptr, self._tensors))
        self._watched = never  # until all attributes have been compared
        self._state = self._optimizer.state
        self._state_version = dict_version(self._state)
        self._made = hooks_made()

    def _note(self, found: Surroundings) -> None:
        """Collect what the fast check reads."""
        self._rejected = False
        groups = [group["params"] for group in self._optimizer.param_groups]
        self._members = [list(group) for group in groups]
        singles = [
            (index, position, value)
            for index, group in enumerate(groups)
            for position, value in enumerate(group)
            if _is_single(value)
        ]
        self._single_places = [(index, position) for index, position, _ in singles]
        self._singles = [value for _, _, value in singles]
        mine = {id(value): value for _, value in found.tensors}
        mine |= {id(value): value for value in chain.from_iterable(groups)}
        self._tensors = [value for value in mine.values() if value.layout is torch.strided]
        trained = {id(value) for value in chain.from_iterable(groups)}
        weights = [
            v for v in mine.values() if isinstance(v, torch.nn.Parameter) or id(v) in trained
        ]
        self._trains = [value for value in weights if value.requires_grad]
        self._frozen = tuple(value for value in weights if not value.requires_grad)
        self.accept()
        self._note_settings()
        self._note_hooks()
        self._note_values(found)

    def _note_settings(self) -> None:
        self._settings, self._set = settings_guard(), tuple(settings())

    def _note_hooks(self) -> None:
        lists = [*step_hook_lists(self._optimizer), *tensor_hook_lists(self._tensors)]
        self._hooks = [(hooks, list(hooks)) for hooks in lists if hooks]

    def _note_values(self, found: Surroundings) -> None:
        inputs = {(id(place.holder), place.key) for place in self.numbers.inputs.values()}
        self._kinds = self.numbers.kinds()
        held: dict[int, list[Held]] = {}
        for item in found.held:
            if (id(item.holder), item.key) not in inputs:
                held.setdefault(id(item.holder), []).append(item)
        with_inputs = {holder for holder, _ in inputs}
        members, hooks = _parts_of_modules(found)
        self._dicts: list[dict[Any, Any]] = []
        self._in_dicts: list[tuple[list[Any], list[Held], set[Any]]] = []
        self._often: list[int] = []  # of `_dicts`: those in which an input changes
        self._parts: list[tuple[Any, int, list[Held]]] = []
        self._alike: list[dict[Any, Any]] = []
        self._empty: list[Any] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._sets: list[tuple[Any, Any]] = []
        single: list[Held] = []
        watched: set[int] = set()
        for holder in found.holders:
            value = holder.value
            if holder.keys is None and isinstance(value, dict):
                watched.add(id(value))
                others = self._left.keys_in(value)
                if id(value) in hooks:
                    if value:
                        self._hooks.append((value, list(value)))
                elif value and id(value) in members and not any(map(_is_single, value.values())):
                    self._alike.append(value)
                elif value or others:
                    if id(value) in with_inputs:
                        self._often.append(len(self._dicts))
                    self._dicts.append(value)
                    keys = [key for key in value if key not in others]
                    self._in_dicts.append((keys, held.get(id(value), []), others))
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
        self._versions = list(map(dict_version, self._dicts))
        self._copies = list(map(dict, self._alike))

    def _tensors_hold(self) -> bool:
        groups = self._optimizer.param_groups
        if len(groups) != len(self._members) or self.state_was_replaced():
            return False
        for group, members in zip(groups, self._members, strict=True):
            if not _alike(group["params"], members):
                return False
        return all(map(is_, self._single_now(), self._singles)) and (
            self._watched() or self._attributes_hold()
        )

    def _attributes_hold(self) -> bool:
        """Compare memory and ``requires_grad`` of each tensor; if all hold, watch their words."""
        holds = (
            all(map(_needs_gradient, self._trains))
            and not (self._frozen and any(map(_needs_gradient, self._frozen)))
            and list(map(torch.Tensor.data_ptr, self._tensors)) == self._places
        )
        if holds:
            mine = {id(value): value for value in (*self._tensors, *self._trains, *self._frozen)}
            self._watched = watch(mine.values())
        return holds

    def _single_now(self) -> Iterator[torch.Tensor]:
        """Yield the optimizer's parameters of one element, which `_alike` compares by value."""
        groups = self._optimizer.param_groups
        for index, position in self._single_places:
            yield groups[index]["params"][position]

    def _values_hold(self) -> bool:
        return (
            self._dicts_hold()
            and self._inputs_hold()
            and _alike(self._alike, self._copies)
            and not any(self._empty)
            and all(map(is_, map(look, self._holders, self._keys), self._values))
            and not (self._lists and not all(map(_same_items, *zip(*self._lists, strict=True))))
            and not (self._sets and any(value != was for value, was in self._sets))
        )

    def _dicts_hold(self) -> bool:
        """Compare versions, and values only in dictionaries in which an input has changed."""
        now = list(map(dict_version, self._dicts))
        if now == self._versions:
            return True
        for index in self._often:
            if now[index] != self._versions[index]:
                if not _same_entries(self._dicts[index], *self._in_dicts[index]):
                    return False
                self._versions[index] = now[index]
        return now == self._versions

    def _inputs_hold(self) -> bool:
        """Whether inputs still are numbers of their types, and all beside them is unchanged."""
        if self._kinds and self.numbers.kinds() != self._kinds:
            return False
        return all(
            len(value) == length
            and all(_unchanged(item.value, look(value, item.key)) for item in items)
            for value, length, items in self._parts
        )

    def _hooks_hold(self) -> bool:
        return hooks_made() == self._made and all(list(hooks) == was for hooks, was in self._hooks)

    def _holds_by_value(self) -> bool:
        """Compare values instead of identities, and note the new identities if all are equal."""
        if not (self._tensors_hold() and self._hooks_hold() and self._set == tuple(settings())):
            return False
        if any(self._empty) or not _alike(self._alike, self._copies):
            return False
        if any(value != was for value, was in self._sets):
            return False
        if not self._inputs_hold() or not all(
            _same_entries(held, *entries)
            for entries, held in zip(self._in_dicts, self._dicts, strict=True)
        ):
            return False
        for holder, key, value in self._single:
            if not _unchanged(value, look(holder, key)):
                return False
        for value, was in self._lists:
            if len(value) != len(was) or not all(map(_unchanged, was, value)):
                return False
        self._versions = list(map(dict_version, self._dicts))
        self._values = [look(holder, key) for holder, key, _ in self._single]
        self._lists = [(value, list(value)) for value, _ in self._lists]
        self._note_settings()
        return True


def _alike(now: Any, before: Any) -> bool:
    """Whether two lists hold the same tensors of several elements.

    Python compares two values by identity first. Only another tensor is compared by value, and that
    raises, because it has more than one element.
    """
    try:
        return bool(now == before)
    except (RuntimeError, TypeError, ValueError):
        return False


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


def _same_entries(
    now: dict[Any, Any], keys: list[Any], items: list[Held], others: set[Any]
) -> bool:
    """Whether a dictionary has the same keys beside some others, and the values that count."""
    if [key for key in now if key not in others] != keys:
        return False
    return all(_unchanged(item.value, now.get(item.key)) for item in items)


def _same_items(now: Any, before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _is_single(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() <= 1


def _unchanged(before: Any, now: Any) -> bool:
    return before is now or (is_atom(before) and is_atom(now) and token(before) == token(now))
