"""The check, before each call of a step, that nothing it was compiled from has changed.

The check runs over lists that were collected before, with functions of C only, because it is part
of every call. It looks at identities and at version numbers of dictionaries. If it fails, the
values are compared, and only if one differs is the program walked over again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter, is_
from typing import Any, TypeAlias

import torch

from mpcompile.lower.programs import Program
from mpcompile.program.capture import Forward
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
from mpcompile.torch_private.tensor_words import never, watch
from mpcompile.train.changes.changing_numbers import ChangingNumbers, NotAsInputs
from mpcompile.train.changes.guarded_values import GuardedValues, alike, is_single
from mpcompile.train.changes.situation import Situation, settings, situation_of, token

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
        self._values.note()

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
                and self._values.hold()
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
            if is_single(value)
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
        self._values = GuardedValues(found, self.numbers, self._left)
        lists = [*step_hook_lists(self._optimizer), *tensor_hook_lists(self._tensors)]
        lists += self._values.hooks
        self._hooks = [(hooks, list(hooks)) for hooks in lists if hooks]

    def _note_settings(self) -> None:
        self._settings, self._set = settings_guard(), tuple(settings())

    def _tensors_hold(self) -> bool:
        groups = self._optimizer.param_groups
        if len(groups) != len(self._members) or self.state_was_replaced():
            return False
        for group, members in zip(groups, self._members, strict=True):
            if not alike(group["params"], members):
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
        """Yield the optimizer's parameters of one element, which `alike` compares by value."""
        groups = self._optimizer.param_groups
        for index, position in self._single_places:
            yield groups[index]["params"][position]

    def _hooks_hold(self) -> bool:
        return hooks_made() == self._made and all(list(hooks) == was for hooks, was in self._hooks)

    def _holds_by_value(self) -> bool:
        """Compare values instead of identities, and note the new identities if all are equal."""
        if not (self._tensors_hold() and self._hooks_hold() and self._set == tuple(settings())):
            return False
        if not self._values.hold_by_value():
            return False
        self._note_settings()
        return True
