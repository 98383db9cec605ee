"""One 16-bit copy of a weight for all steps that read it.

The step that trains a weight keeps a working copy of it; a step that only reads the weight reads
that one, wherever it lies. A weight that no step trains, or none with a copy of the wanted dtype,
has one copy beside, for all who read it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Protocol

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import Role
from mpcompile.torch_private.tensors import version_of


class Trainer(Protocol):
    """A step that trains weights, as others see it."""

    def copy_of(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Return its working copy of a weight, if there is one of this dtype."""

    def catch_up(self) -> None:
        """Write the working copies again if somebody has written to the parameters."""

    def rewrite(self) -> None:
        """Write the working copies again from the masters."""

    def lose(self, parameter: torch.Tensor) -> None:
        """Take note that a step that was compiled later trains a weight."""


class _Beside:
    """A copy of a weight that no step writes in its update."""

    def __init__(self, parameter: torch.Tensor, dtype: torch.dtype) -> None:
        self._parameter = parameter
        self.tensor = parameter.detach().to(dtype)
        self._written = self._now()

    def _now(self) -> tuple[int, int]:
        return version_of(self._parameter), self._parameter.data_ptr()

    def follow(self, always: bool) -> None:
        """Write it again if the weight has moved or was written to, or always."""
        if always or self._now() != self._written:
            self.tensor.copy_(self._parameter.detach())
            self._written = self._now()


class _Weights:
    """Who trains which weight, and the copies of weights beside; it keeps none of them alive.

    Attributes:
        changes: how often a weight has got or lost the step that trains it.
    """

    def __init__(self) -> None:
        self._trainers: MutableMapping[torch.Tensor, weakref.ref[Trainer]]
        self._trainers = WeakTensorKeyDictionary()
        self._beside: MutableMapping[
            torch.Tensor,
            weakref.WeakValueDictionary[tuple[torch.dtype, torch.device], _Beside],
        ]
        self._beside = WeakTensorKeyDictionary()
        self.changes = 0

    def claim(self, parameters: Iterable[torch.Tensor], trainer: Trainer) -> None:
        """Note that a step trains weights from now on, and tell the one that did until now."""

        def forget(_: weakref.ref[Trainer]) -> None:
            self.changes += 1

        mine = weakref.ref(trainer, forget)
        for parameter in parameters:
            before = self.trainer_of(parameter)
            if before is not None:
                before.lose(parameter)
            self._trainers[parameter] = mine
        self.changes += 1

    def trainer_of(self, parameter: torch.Tensor) -> Trainer | None:
        """Return the step that trains a weight, if there is one."""
        found = self._trainers.get(parameter)
        return None if found is None else found()

    def beside(self, parameter: torch.Tensor, dtype: torch.dtype) -> _Beside:
        """Return the copy of a weight that no step trains in this dtype."""
        copies = self._beside.setdefault(parameter, weakref.WeakValueDictionary())
        key = dtype, parameter.device
        found = copies.get(key)
        if found is None:
            copies[key] = found = _Beside(parameter, dtype)
        return found


_WEIGHTS = _Weights()


def claim(parameters: Iterable[torch.Tensor], trainer: Trainer) -> None:
    """Note that a step trains weights from now on; the one that did until now loses them.

    Args:
        parameters: the user's own tensors.
        trainer: only asked as long as it lives.
    """
    _WEIGHTS.claim(parameters, trainer)


class ReadWeights:
    """The weights that a step reads and does not train, and their 16-bit copies.

    Args:
        state: the step's tensors by slot, among which they are put.
    """

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = state
        self._read: dict[str, tuple[torch.Tensor, torch.dtype]] = {}
        self._places: list[tuple[torch.Tensor, int]] = []
        self._trainers: list[weakref.ref[Trainer]] = []
        self._beside: list[tuple[_Beside, bool]] = []
        self._changes = -1

    def add(self, step: StepGraph, parameters: Mapping[str, torch.Tensor]) -> None:
        """Read what a step graph reads of the parameters, by name; it is bound by `follow`."""
        for slot in step.slots.values():
            reads = slot.role in (Role.CONSTANT, Role.SHARED) and slot.name not in self._read
            if reads:
                self._read[slot.name] = parameters[step.members(slot.name)[0]], slot.dtype
                self._changes = -1

    def copies(self) -> dict[int, torch.Tensor]:
        """Return the 16-bit copies by the ``id`` of their parameters."""
        return {
            id(parameter): self._state[slot]
            for slot, (parameter, dtype) in self._read.items()
            if dtype is not parameter.dtype
        }

    def follow(self) -> bool:
        """Bring the copies up to date; return whether slots have other tensors now."""
        moved = self._changes != _WEIGHTS.changes or any(
            parameter.data_ptr() != place for parameter, place in self._places
        )
        if moved:
            moved = self._bind()
        for trainer in self._alive():
            trainer.catch_up()
        for copy, always in self._beside:
            copy.follow(always)
        return moved

    def rewrite(self) -> None:
        """Write the copies again from the weights."""
        for trainer in self._alive():
            trainer.rewrite()
        for copy, _ in self._beside:
            copy.follow(always=True)

    def _alive(self) -> Iterator[Trainer]:
        """Yield the steps whose working copies are read, but for those that are gone."""
        for reference in self._trainers:
            trainer = reference()
            if trainer is not None:
                yield trainer

    def _bind(self) -> bool:
        """Find out where everything lies; return whether anything lies elsewhere than before."""
        self._changes = _WEIGHTS.changes
        self._places = [(p, p.data_ptr()) for p, _ in self._read.values()]
        self._beside = []
        trainers: dict[int, Trainer] = {}
        moved = False
        for slot, (parameter, dtype) in self._read.items():
            if dtype is parameter.dtype:
                found = parameter.detach()
            else:
                trainer = _WEIGHTS.trainer_of(parameter)
                copy = None if trainer is None else trainer.copy_of(parameter, dtype)
                if trainer is not None and copy is not None:
                    trainers[id(trainer)] = trainer
                    found = copy
                else:
                    beside = _WEIGHTS.beside(parameter, dtype)
                    # A trainer's own update is no write that PyTorch counts.
                    self._beside.append((beside, trainer is not None))
                    found = beside.tensor
            before = self._state.get(slot)
            moved |= before is None or before.data_ptr() != found.data_ptr()
            self._state[slot] = found
        self._trainers = [weakref.ref(trainer) for trainer in trainers.values()]
        return moved
