"""One 16-bit copy of a weight for all steps that read it.

The step that trains a weight keeps a working copy of it. A step that only reads the weight reads
that same copy. If no step trains the weight, or its copy has another dtype, the weight has one
extra copy for all steps that read it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Protocol

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from mpcompile.program.complex_parameters import as_real
from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import Role
from mpcompile.torch_private.tensors import version_of


class Trainer(Protocol):
    """The interface of a step that trains weights, for steps that read them."""

    def copy_of(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Return its working copy of a weight, if there is one of this dtype."""

    def catch_up(self) -> None:
        """Write the working copies again if the parameters were written to."""

    def rewrite(self) -> None:
        """Write the working copies again from the masters."""

    def lose(self, parameter: torch.Tensor) -> None:
        """Note that a step compiled later trains a weight."""


class _ExtraCopy:
    """A copy of a weight that no step's update writes."""

    def __init__(self, parameter: torch.Tensor, dtype: torch.dtype) -> None:
        self._parameter = parameter
        self.tensor = parameter.detach().to(dtype)
        self._written = self._now()

    def _now(self) -> tuple[int, int]:
        return version_of(self._parameter), self._parameter.data_ptr()

    def follow(self, always: bool) -> None:
        """Write the copy again if the weight has moved or was written to, or always."""
        if always or self._now() != self._written:
            self.tensor.copy_(self._parameter.detach())
            self._written = self._now()


class _Weights:
    """The step that trains each weight, and the extra copies, all as weak references.

    Attributes:
        changes: how often a weight has got or lost the step that trains it.
    """

    def __init__(self) -> None:
        self._trainers: MutableMapping[torch.Tensor, weakref.ref[Trainer]]
        self._trainers = WeakTensorKeyDictionary()
        self._extra: MutableMapping[
            torch.Tensor,
            weakref.WeakValueDictionary[tuple[torch.dtype, torch.device], _ExtraCopy],
        ]
        self._extra = WeakTensorKeyDictionary()
        self.changes = 0

    def claim(self, parameters: Iterable[torch.Tensor], trainer: Trainer) -> None:
        """Note that a step trains weights from now on, and tell the step that trained them."""

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

    def extra_copy(self, parameter: torch.Tensor, dtype: torch.dtype) -> _ExtraCopy:
        """Return the extra copy of a weight in this dtype."""
        copies = self._extra.setdefault(parameter, weakref.WeakValueDictionary())
        key = dtype, parameter.device
        found = copies.get(key)
        if found is None:
            copies[key] = found = _ExtraCopy(parameter, dtype)
        return found


_WEIGHTS = _Weights()


def claim(parameters: Iterable[torch.Tensor], trainer: Trainer) -> None:
    """Note that a step trains weights from now on; the step that trained them loses them.

    Args:
        parameters: the user's own tensors.
        trainer: the step; it is held as a weak reference.
    """
    _WEIGHTS.claim(parameters, trainer)


class ReadWeights:
    """The weights that a step reads and does not train, and their 16-bit copies.

    Args:
        state: the step's tensors by slot; weights and copies are added to them.
    """

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = state
        self._read: dict[str, tuple[torch.Tensor, torch.dtype]] = {}
        self._addresses: list[tuple[torch.Tensor, int]] = []
        self._trainers: list[weakref.ref[Trainer]] = []
        self._extra: list[tuple[_ExtraCopy, bool]] = []
        self._changes = -1

    def add(self, step: StepGraph, parameters: Mapping[str, torch.Tensor]) -> None:
        """Add the parameters that a step graph reads; `follow` binds them.

        Args:
            step: the step graph.
            parameters: the user's own tensors by name.
        """
        for slot in step.slots.values():
            reads = slot.role in (Role.CONSTANT, Role.SHARED) and slot.name not in self._read
            if reads:
                self._read[slot.name] = parameters[step.members(slot.name)[0]], slot.dtype
                self._changes = -1

    def parameters(self) -> set[int]:
        """Return the ``id`` of each parameter that is read."""
        return {id(parameter) for parameter, _ in self._read.values()}

    def copies(self) -> dict[int, torch.Tensor]:
        """Return the 16-bit copies by the ``id`` of their parameters."""
        return {
            id(parameter): self._state[slot]
            for slot, (parameter, dtype) in self._read.items()
            if dtype is not parameter.dtype and not parameter.is_complex()
        }

    def follow(self) -> bool:
        """Bring the copies up to date; return whether slots have other tensors now."""
        moved = self._changes != _WEIGHTS.changes or any(
            parameter.data_ptr() != address for parameter, address in self._addresses
        )
        if moved:
            moved = self._bind()
        for trainer in self._alive():
            trainer.catch_up()
        for copy, always in self._extra:
            copy.follow(always)
        return moved

    def rewrite(self) -> None:
        """Write the copies again from the weights."""
        for trainer in self._alive():
            trainer.rewrite()
        for copy, _ in self._extra:
            copy.follow(always=True)

    def _alive(self) -> Iterator[Trainer]:
        """Yield the steps whose working copies are read and which still exist."""
        for reference in self._trainers:
            trainer = reference()
            if trainer is not None:
                yield trainer

    def _bind(self) -> bool:
        """Find the storage of all weights and copies; return whether any of it has changed."""
        self._changes = _WEIGHTS.changes
        self._addresses = [(p, p.data_ptr()) for p, _ in self._read.values()]
        self._extra = []
        trainers: dict[int, Trainer] = {}
        moved = False
        for slot, (parameter, dtype) in self._read.items():
            if dtype is parameter.dtype or parameter.is_complex():
                found = as_real(parameter.detach())
            else:
                trainer = _WEIGHTS.trainer_of(parameter)
                copy = None if trainer is None else trainer.copy_of(parameter, dtype)
                if trainer is not None and copy is not None:
                    trainers[id(trainer)] = trainer
                    found = copy
                else:
                    extra = _WEIGHTS.extra_copy(parameter, dtype)
                    # PyTorch does not count the writes of a trainer's own update.
                    self._extra.append((extra, trainer is not None))
                    found = extra.tensor
            before = self._state.get(slot)
            moved |= before is None or before.data_ptr() != found.data_ptr()
            self._state[slot] = found
        self._trainers = [weakref.ref(trainer) for trainer in trainers.values()]
        return moved
