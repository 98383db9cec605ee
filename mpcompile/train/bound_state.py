"""The tensors behind a step's slots; the user's parameters and optimizer state are their views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod

import torch

from mpcompile.errors import BadInput
from mpcompile.passes.step.accumulate_gradients import BEFORE
from mpcompile.program.capture import Forward, InputKind
from mpcompile.program.complex_parameters import as_real, like_of
from mpcompile.step.arena import Arena, arena_views
from mpcompile.step.collectives import put_together
from mpcompile.step.graph import StepGraph, placeholders
from mpcompile.step.slices import absent, is_absent, own_slice
from mpcompile.step.slots import STATE, Role
from mpcompile.step.transformed import Transformed
from mpcompile.torch_private.tensor_words import Writes
from mpcompile.train.bound_optimizer import BoundOptimizer, when_loaded
from mpcompile.train.places import Places, placeholders_for_absent
from mpcompile.train.users_state import (
    give_own_memory,
    named_of_user,
    names_in,
    refuse_to_save_slices,
)
from mpcompile.train.weight_copies import ReadWeights, claim


class BoundState:
    """All state of one step, in arenas.

    The model's parameters become views of the masters, and the optimizer's entries become views of
    its state. The step takes over writes to either. In a sharded arena this process holds a slice:
    outside `whole`, optimizer state and weights that forward reads in 16 bits only are absent.

    Args:
        transformed: the step, and the workload whose parameters it trains.
        kept: tensors of slots that another layout of the same step has used: scale and counters.

    Attributes:
        tensors: the step's tensors by slot.
        trained: the user's own parameters in arenas.
        uneven: see `BoundOptimizer`.
    """

    def __init__(
        self, transformed: Transformed, kept: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        workload, forward, step = transformed.workload, transformed.forward, transformed.step
        assert workload.optimizer is not None
        assert step is not None
        self._parallel = transformed.choices.loop.parallel
        self._step, self._rule = step, transformed.choices.scale
        self._is_whole = False
        self._model, self._optimizer = workload.model, workload.optimizer
        self._device = next(iter(workload.model.parameters())).device
        self._parameters = {item.name: item.tensor for item in forward.inputs}
        self._names = {id(item.tensor): item.name for item in forward.inputs}
        self.tensors: dict[str, torch.Tensor] = dict(kept or {})
        initial, mine = transformed.initial, self._parameters
        self._entries = BoundOptimizer(
            self._optimizer, step, initial, mine, self.tensors, self._parallel
        )
        self.uneven = self._entries.uneven
        self.trained: list[torch.Tensor] = []
        self._places = Places()
        self._constants, self._lost = list[torch.Tensor](), ""
        self._read = ReadWeights(self.tensors)
        for arena in step.arenas:
            self._bind_arena(arena)
        claim(self.trained, self)
        self._bind_rest()
        self._read.follow()
        if any(arena.ranks > 1 for arena in step.arenas):
            refuse_to_save_slices(self._model, self._optimizer, self.trained, self._entries)
        self._forget_loads = when_loaded(self._optimizer, self.adopt)
        self._writes = Writes(self.trained)  # by others; those of the step itself are not counted
        self._written = self._writes.now()
        # Without copies or slices the graphs read the masters themselves.
        self._copied = bool(step.working) or any(arena.ranks > 1 for arena in step.arenas)

    def take_over(self) -> bool:
        """Write the working copies again if the parameters were written to.

        A parameter that this step only reads may have moved: a step compiled later may train it.

        Returns:
            Whether such a parameter or its copy has moved, so that slots have other tensors now.

        Raises:
            BadInput: another step trains the parameters, or `whole` has them.
        """
        self._check_owner()
        self.catch_up()
        return self._read.follow()

    def take_up(self, moved: Sequence[torch.Tensor]) -> bool:
        """Copy what was put in the place of trained parameters; they become views again.

        Args:
            moved: tensors of the program whose storage has changed.

        Returns:
            Whether all are trained, read in a way that follows them, or not read at all.

        Raises:
            BadInput: another step trains the parameters, or one has another device or dtype.
        """
        self._check_owner()
        if self._places.take_up(moved):
            self.rewrite()
        followed = self._read.parameters()
        return all(
            id(value) in followed or value in self._places or id(value) not in self._names
            for value in moved
        )

    def admit(self, forward: Forward, step: StepGraph) -> dict[str, torch.Tensor] | None:
        """Let another gradient graph read the state.

        Returns:
            Tensors that this graph alone reads, by slot: constants of its capture. None if the
            graph needs another layout of the state.
        """
        others = {
            item.name: item.tensor
            for item in forward.inputs
            if item.kind is not InputKind.BATCH
            and self._parameters.get(item.name) is not item.tensor
        }
        mine = self._step
        own = (Role.BATCH, Role.AUXILIARY, Role.SHARED)
        alike = (
            step.arenas == mine.arenas
            and step.working == mine.working
            and all(
                name in step.joined or slot.role in own or mine.slots.get(name) == slot
                for name, slot in step.slots.items()
                if name not in others
            )
        )
        own_constants = others.keys().isdisjoint(names_in(self._model) | {*forward.written})
        if not alike or not own_constants:
            return None
        for arena in step.arenas:
            self._bind_joined(step, arena)
        self._read.add(step, self._parameters)
        self._names |= {id(value): name for name, value in others.items()}
        self._constants += others.values()  # kept, so that an id stays its own
        return {name: value.detach() for name, value in others.items()}

    def masters(self, step: StepGraph) -> dict[str, torch.Tensor]:
        """Return the FP32 masters of each 16-bit copy that is read; all processes call this."""
        found = {}
        wholes = {arena.name: self._whole_master(arena) for arena in self._step.arenas}
        for name in placeholders(step.gradient.graph):
            slot = step.slots[name]
            if slot.role is Role.WORKING:
                first = step.members(name)[0]
                arena = step.arena_of(first)
                master = wholes[arena.name]
                start = arena.offset_of(first) if arena.flat else 0
                found[name] = master.flatten()[start : start + prod(slot.shape)].view(slot.shape)
            elif slot.role is Role.SHARED:
                found[name] = self.tensors[step.members(name)[0]]
        return found

    def _whole_master(self, arena: Arena) -> torch.Tensor:
        own = self.tensors[f"{arena.name}.master"]
        if arena.ranks == 1:
            return own
        assert self._parallel is not None
        whole = self.tensors.get(f"{arena.name}.whole")
        return put_together(own, self._parallel) if whole is None else whole

    def named(self) -> dict[str, torch.Tensor]:
        """Return all state that stays from step to step by the user's own names, not copied.

        Neither names nor shapes depend on the plan: ``model.fc1.weight``,
        ``optimizer.exp_avg.fc1.weight``, and for the step itself ``step.scale`` and its counters.
        """
        users = (Role.MASTER, Role.WORKING, Role.BUFFER, Role.OPTIMIZER, Role.PENDING)
        return named_of_user(self._model, self._optimizer) | {
            f"step.{slot.name}": self.tensors[slot.name]
            for slot in self._step.slots.values()
            if slot.role in STATE and slot.role not in users
        }

    def working_copies(self) -> dict[int, torch.Tensor]:
        """Return the 16-bit copies by the ``id`` of their parameters."""
        mine = {
            id(self._parameters[name]): self.tensors[f"{name}.working"]
            for name in self._step.working
        }
        return mine | self._read.copies()

    def copy_of(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """See `mpcompile.train.weight_copies.Trainer`."""
        name = self._names[id(parameter)]
        copy, master = self.tensors.get(f"{name}.working"), self.tensors.get(name)
        if copy is None or copy.dtype is not dtype:
            return None
        here = is_absent(parameter) if master is None else parameter.data_ptr() == master.data_ptr()
        return copy if here else None

    def lose(self, parameter: torch.Tensor) -> None:
        """See `mpcompile.train.weight_copies.Trainer`."""
        self._lost = self._lost or self._names[id(parameter)]

    def keep_buffers(self) -> None:
        """Copy the buffers before the first micro-batch of an update."""
        for name, kept in self.tensors.items():
            if name.startswith(BEFORE):
                kept.copy_(self.tensors[name.removeprefix(BEFORE)])

    def refresh(self) -> None:
        """Write all working copies again from the masters, also copies of weights only read."""
        self._check_owner()
        self.rewrite()
        self._read.rewrite()

    def catch_up(self) -> None:
        """See `mpcompile.train.weight_copies.Trainer`."""
        if self._copied and self._writes.now() != self._written:
            self.rewrite()

    def rewrite(self) -> None:
        """Write the step's own working copies again from the masters."""
        with torch.no_grad():
            for arena in self._step.arenas:
                working = self.tensors.get(f"{arena.name}.working")
                name = "whole" if arena.ranks > 1 else "master"
                master = self.tensors.get(f"{arena.name}.{name}")
                if master is None:
                    continue  # absent weights cannot be written to
                if arena.ranks > 1:
                    own = own_slice(arena, master, self._parallel)
                    self.tensors[f"{arena.name}.master"].copy_(own)
                if working is not None:
                    working.copy_(master[: working.shape[0]] if arena.flat else master)
        self._written = self._writes.now()

    def _check_owner(self) -> None:
        """Raise BadInput if another step trains the parameters, or `whole` has them."""
        if self._is_whole:
            raise BadInput("a step is called inside step.whole()", fix="leave the with block first")
        if self._lost:
            raise BadInput(
                f"{self._lost} now belongs to a step that was compiled later and also trains it",
                fix="use that step, or leave the parameter out of one of the two optimizers and "
                "compile both again",
            )

    def _bind_arena(self, arena: Arena) -> None:
        """Move parameters and optimizer state into an arena; the user's tensors become views."""
        parameters = [self._parameters[name] for name in arena.parameters]
        self.trained += parameters
        self._bind_weights(arena, self._laid_out(arena))
        self._entries.bind(arena)
        working = self._step.slots.get(f"{arena.name}.working")
        if working is not None:
            copy = self.tensors[working.name]
            names = [name for name in arena.parameters if name in self._step.working]
            for name, view in zip(names, arena_views(arena, copy), strict=False):
                self.tensors[f"{name}.working"] = view
            self._bind_joined(self._step, arena)

    def _laid_out(self, arena: Arena) -> torch.Tensor:
        """Return an arena's weights, with the model's present values, as one new tensor."""
        shape = (arena.length,) if arena.flat else arena.shape
        whole = torch.zeros(shape, device=self._device)
        for name, view in zip(arena.parameters, arena_views(arena, whole), strict=True):
            if is_absent(self._parameters[name]):
                raise BadInput(
                    f"another step holds the weight {name} in slices",
                    fix="compile inside `with step.whole():` of that step",
                )
            view.copy_(as_real(self._parameters[name].detach()))
        return whole

    def _bind_weights(self, arena: Arena, whole: torch.Tensor) -> None:
        """Keep the part of the weights that this process must hold; parameters become views."""
        kept = self._keeps_weights(arena)
        if kept and arena.ranks > 1:
            self.tensors[f"{arena.name}.whole"] = whole
        own = own_slice(arena, whole, self._parallel)
        # A copy apart from the whole: inductor rejects written inputs that share memory.
        self._hold(f"{arena.name}.master", own if arena.ranks == 1 else own.clone())
        for name, view in zip(arena.parameters, arena_views(arena, whole), strict=True):
            parameter = self._parameters[name]
            mine = like_of(parameter, view) if kept else None
            parameter.data = absent(parameter, self._device) if mine is None else mine
            self._places.note(name, parameter, mine)
            if kept:
                self.tensors[name] = view
        working = self._step.slots.get(f"{arena.name}.working")
        if working is not None:
            copied = whole[: working.shape[0]] if arena.flat else whole
            self._hold(working.name, copied.to(working.dtype))

    def _keeps_weights(self, arena: Arena) -> bool:
        """Whether this process holds all masters of an arena: forward may read some in FP32."""
        return arena.ranks == 1 or f"{arena.name}.whole" in self._step.slots

    def _hold(self, name: str, value: torch.Tensor) -> None:
        """Write the value to the slot's tensor, or make the value the slot's tensor."""
        if name in self.tensors:
            self.tensors[name].copy_(value)
        else:
            self.tensors[name] = value

    def _bind_joined(self, step: StepGraph, arena: Arena) -> None:
        """Bind the slots that are each a view of several working copies of an arena."""
        for name, members in step.joined.items():
            if members[0] in arena.parameters:
                slot, start = step.slots[name], arena.offset_of(members[0])
                copy = self.tensors[f"{arena.name}.working"]
                self.tensors[name] = copy[start : start + prod(slot.shape)].view(slot.shape)

    def kept(self) -> dict[str, torch.Tensor]:
        """Return scale, counters and reports, which do not depend on the layout."""
        roles = (Role.SCALE, Role.TRACKER, Role.COUNTER, Role.REPORT)
        kept = (name for name, slot in self._step.slots.items() if slot.role in roles)
        return {name: self.tensors[name] for name in kept}

    def release(self, successor: BoundState) -> None:
        """Give the weights and states that a successor does not train memory of their own."""
        self._forget_loads()
        others = {id(parameter) for parameter in successor.trained}
        mine = [parameter for parameter in self.trained if id(parameter) not in others]
        give_own_memory(mine, self._optimizer)
        self.tensors.clear()

    def adopt(self) -> None:
        """Take over tensors put instead of the arenas' views, and values written to the views."""
        if self._is_whole or self._lost:
            return  # `whole` takes over at its end; another step owns a lost parameter
        for arena in self._step.arenas:
            self._entries.bind(arena)
        self.refresh()

    @contextmanager
    def whole(self, device: torch.device | None = None) -> Iterator[None]:
        """Put weights and optimizer state together, and cut them into slices again at the end.

        All processes must call this, and must leave the same values in the tensors.

        Args:
            device: holds the whole tensors; default: the model's device.
        """
        sharded = [arena for arena in self._step.arenas if arena.ranks > 1]
        if not sharded or self._is_whole:
            yield
            return
        for arena in sharded:
            self._put_together(arena, device or self._device)
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            for arena in sharded:
                if not self._keeps_weights(arena):
                    self._bind_weights(arena, self._laid_out(arena))
                self._entries.bind(arena)
            self.refresh()

    def _put_together(self, arena: Arena, device: torch.device) -> None:
        assert self._parallel is not None
        parameters = [self._parameters[name] for name in arena.parameters]
        if not self._keeps_weights(arena):
            whole = self._whole_master(arena).to(device)
            for parameter, view in zip(parameters, arena_views(arena, whole), strict=True):
                parameter.data = like_of(parameter, view)
        self._entries.put_together(arena, device)

    def placeholders_for_absent(self) -> AbstractContextManager[None]:
        """Give absent weights memory without values, so that the model can be captured again."""
        return placeholders_for_absent(self.trained, self._device)

    def _bind_rest(self) -> None:
        self._read.add(self._step, self._parameters)
        for slot in self._step.slots.values():
            if slot.name in self.tensors:
                continue
            if slot.role in (Role.BUFFER, Role.NUMBER):
                self.tensors[slot.name] = self._parameters[slot.name].detach()
            elif slot.role in (Role.SCALE, Role.TRACKER, Role.COUNTER, Role.HYPER, Role.PENDING,
                               Role.REPORT):  # fmt: skip
                first = self._rule.initial if slot.role is Role.SCALE else 0
                self.tensors[slot.name] = torch.full(
                    slot.shape, first, dtype=slot.dtype, device=self._device
                )
