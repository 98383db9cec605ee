"""The optimizer's state in arenas; the user's entries are views of the arenas."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpcompile.program.complex_parameters import as_real, like_of
from mpcompile.step.arena import Arena, arena_views
from mpcompile.step.collectives import put_together
from mpcompile.step.graph import StepGraph
from mpcompile.step.optimizer_start import BEGUN, has_begun
from mpcompile.step.processes import DataParallel
from mpcompile.step.slices import own_slice


def when_loaded(optimizer: torch.optim.Optimizer, method: Callable[[], None]) -> Callable[[], None]:
    """Call a method after each ``load_state_dict``, as long as its object is alive.

    Returns:
        A function that ends this.
    """
    reference = weakref.WeakMethod(method)

    def call(_: torch.optim.Optimizer) -> None:
        held = reference()
        if held is not None:
            held()

    hook = optimizer.register_load_state_dict_post_hook(call)
    weakref.finalize(method.__self__, hook.remove)  # type: ignore[attr-defined]
    return hook.remove


class BoundOptimizer:
    """The state that the update graph reads and writes, by slot.

    In a sharded arena this process holds a slice of each tensor. The optimizer has an entry for it
    after `put_together` only. All processes hold all numbers, such as step counters.

    Args:
        optimizer: the user's optimizer.
        step: gives slots and arenas.
        initial: per arena, the start value of each state tensor.
        parameters: the model's parameters by name.
        tensors: the step's tensors by slot; the state is added to them.
        parallel: the processes that share the sharded arenas.

    Attributes:
        uneven: arenas of which some parameters have taken more steps than others. The update graph
            has one counter for all, so they cannot be updated together.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        step: StepGraph,
        initial: Mapping[str, Mapping[str, torch.Tensor]],
        parameters: Mapping[str, torch.Tensor],
        tensors: dict[str, torch.Tensor],
        parallel: DataParallel | None,
    ) -> None:
        self._optimizer, self._step, self._initial = optimizer, step, initial
        self._parameters, self._tensors, self._parallel = parameters, tensors, parallel
        self.uneven: set[str] = set()

    def bind(self, arena: Arena) -> None:
        """Take over an arena's state; it has begun if it differs from the initial state."""
        initial, entries = self._initial[arena.name], self._entries(arena)
        self.uneven.discard(arena.name)
        begun, there = f"{arena.name}.{BEGUN}", self._in_slices(arena, entries)
        if begun in self._step.slots and not there:
            device = entries[0][1].device
            self._tensors.setdefault(begun, torch.zeros((), device=device))
            each = [has_begun([entry], initial) for entry, _ in entries]
            self._tensors[begun].fill_(any(each))
            if any(each) != all(each):
                self.uneven.add(arena.name)
        sliced = self._sliced(arena)
        for key, first in initial.items():
            if not (there and key in sliced):
                self._bind(arena, key, first)

    def put_together(self, arena: Arena, device: torch.device) -> None:
        """Give the optimizer the whole state of a sharded arena; all processes must call this."""
        assert self._parallel is not None
        for key in self._sliced(arena):
            state = put_together(self._tensors[f"{arena.name}.{key}"], self._parallel).to(device)
            for (entry, parameter), view in zip(
                self._entries(arena), arena_views(arena, state), strict=True
            ):
                entry[key] = like_of(parameter, view)

    def are_sliced(self) -> bool:
        """Whether the optimizer lacks state because this process holds only a slice of it."""
        return any(
            key not in entry
            for arena in self._step.arenas
            for key in self._sliced(arena)
            for entry, _ in self._entries(arena)
        )

    def _entries(self, arena: Arena) -> list[tuple[dict[str, Any], torch.Tensor]]:
        parameters = [self._parameters[name] for name in arena.parameters]
        if not self._initial[arena.name]:  # `optimizer.state[parameter]` would make an entry
            return [({}, parameter) for parameter in parameters]
        return [(self._optimizer.state[parameter], parameter) for parameter in parameters]

    def _sliced(self, arena: Arena) -> list[str]:
        """Return the kinds of state that are split into one slice per process."""
        initial = self._initial[arena.name]
        return [key for key, first in initial.items() if arena.ranks > 1 and first.dim() > 0]

    def _in_slices(
        self, arena: Arena, entries: Sequence[tuple[dict[str, Any], torch.Tensor]]
    ) -> bool:
        """Whether the state is in slices already, and the optimizer was given no other state."""
        keys = self._sliced(arena)
        given = any(key in entry for entry, _ in entries for key in keys)
        return bool(keys) and not given and f"{arena.name}.{keys[0]}" in self._tensors

    def _bind(self, arena: Arena, key: str, first: torch.Tensor) -> None:
        """Take over one kind of state, or start it, and make the user's entries views of it.

        Each parameter gets its own part of the memory, so that any process can load a checkpoint.
        """
        slot = self._step.slots[f"{arena.name}.{key}"]
        numbers = arena.flat and first.dim() == 0
        sliced, entries = key in self._sliced(arena), self._entries(arena)
        state = None if sliced else self._tensors.get(slot.name)
        if state is None:
            shape = (arena.length,) if sliced else slot.shape
            state = torch.zeros(shape, dtype=slot.dtype, device=entries[0][1].device)
        views = state.unbind() if numbers else arena_views(arena, state)
        for (entry, parameter), view in zip(entries, views, strict=True):
            if key in entry and isinstance(entry[key], torch.Tensor):
                view.copy_(as_real(entry[key]))
            else:
                view.fill_(first.flatten()[0])
            entry[key] = view if view.dim() == 0 else like_of(parameter, view)
        if numbers and bool((state != state[0]).any()):
            self.uneven.add(arena.name)
        if not sliced:
            self._tensors[slot.name] = state
            return
        own = own_slice(arena, state, self._parallel)
        held = self._tensors.get(slot.name)
        if held is None:
            self._tensors[slot.name] = own.clone()
        else:
            held.copy_(own)
        for entry, parameter in entries:  # a state_dict() made earlier keeps the old entries
            kept = {name: value for name, value in entry.items() if name != key}
            self._optimizer.state[parameter] = kept
