"""The tensors behind a step's slots, of which the user's parameters and optimizer are views."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from math import prod

import torch

from mpcompile.errors import BadInput
from mpcompile.loss_scale import LossScale
from mpcompile.passes.accumulate_gradients import BEFORE
from mpcompile.start_of_state import BEGUN, has_begun
from mpcompile.step import STATE, Arena, Role, StepGraph, arena_views, placeholders
from mpcompile.torch_graph import Forward
from mpcompile.torch_private import version_of
from mpcompile.weight_copies import ReadWeights, claim
from mpcompile.workload import Workload


class BoundState:
    """All state of one step, in arenas.

    The model's parameters become views of the masters, the optimizer's entries views of its state;
    what is written to either by others is taken over.

    Attributes:
        tensors: by slot.
    """

    def __init__(
        self,
        workload: Workload,
        forward: Forward,
        step: StepGraph,
        initial: dict[str, dict[str, torch.Tensor]],
        scale: LossScale,
    ) -> None:
        assert workload.optimizer is not None
        self._step, self._initial, self._rule = step, initial, scale
        self._model, self._optimizer = workload.model, workload.optimizer
        self._device = next(iter(workload.model.parameters())).device
        self._parameters = {item.name: item.tensor for item in forward.inputs}
        self._names = {id(item.tensor): item.name for item in forward.inputs}
        self.tensors: dict[str, torch.Tensor] = {}
        self._trained: list[torch.Tensor] = []
        self._first: list[tuple[torch.Tensor, int]] = []
        self._lost = ""
        self._read = ReadWeights(self.tensors)
        self._bind_arenas(initial)
        claim(self._trained, self)
        self._bind_rest()
        self._read.follow()
        self._adopt_what_is_loaded()
        self._written = self._versions()

    def take_over(self) -> bool:
        """Write the working copies again if somebody has written to the parameters.

        A parameter that is read only may have moved, when another step was compiled that trains it.

        Returns:
            Whether one or its copy has, so that slots have other tensors now.

        Raises:
            BadInput: trained parameters have moved, or another step trains them.
        """
        self._check_places()
        self.catch_up()
        return self._read.follow()

    def admit(self, step: StepGraph) -> None:
        """Let another gradient graph of the same program read the state.

        Raises:
            BadInput: it would have the state laid out otherwise.
        """
        mine = self._step
        own = (Role.BATCH, Role.AUXILIARY, Role.SHARED)
        alike = (
            step.arenas == mine.arenas
            and step.working == mine.working
            and all(
                name in step.joined or slot.role in own or mine.slots.get(name) == slot
                for name, slot in step.slots.items()
            )
        )
        if not alike:
            raise BadInput(
                "a batch of this shape would have the weights laid out otherwise",
                "",
                "drop the last, smaller batch, or compile another step for it",
            )
        for arena in step.arenas:
            self._bind_joined(step, arena)
        self._read_weights(step)

    def masters(self, step: StepGraph) -> dict[str, torch.Tensor]:
        """Return, per working copy that a gradient graph reads, the FP32 masters it is one of."""
        found = {}
        for name in placeholders(step.gradient.graph):
            slot = step.slots[name]
            if slot.role is Role.WORKING:
                first = step.members(name)[0]
                arena = step.arena_of(first)
                master = self.tensors[f"{arena.name}.master"]
                start = arena.offset_of(first) if arena.flat else 0
                found[name] = master.flatten()[start : start + prod(slot.shape)].view(slot.shape)
            elif slot.role is Role.SHARED:
                found[name] = self.tensors[step.members(name)[0]]
        return found

    def named(self) -> dict[str, torch.Tensor]:
        """Return all that lives from step to step by the user's own names, not copied.

        Neither names nor shapes depend on the plan: ``model.fc1.weight``,
        ``optimizer.exp_avg.fc1.weight``, and of the step itself ``step.scale`` and its counters.
        """
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        users = (Role.MASTER, Role.WORKING, Role.BUFFER, Role.OPTIMIZER)
        return {
            **{f"model.{name}": value for name, value in self._model.named_parameters()},
            **{f"model.{name}": value for name, value in self._model.named_buffers()},
            **{
                f"optimizer.{key}.{names[id(parameter)]}": value
                for parameter, entries in self._optimizer.state.items()
                for key, value in entries.items()
                if isinstance(value, torch.Tensor)
            },
            **{
                f"step.{slot.name}": self.tensors[slot.name]
                for slot in self._step.slots.values()
                if slot.role in STATE and slot.role not in users
            },
        }

    def working_copies(self) -> dict[int, torch.Tensor]:
        """Return the 16-bit copies by the ``id`` of their parameters."""
        mine = {
            id(self._parameters[name]): self.tensors[f"{name}.working"]
            for name in self._step.working
        }
        return mine | self._read.copies()

    def copy_of(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """See `mpcompile.weight_copies.Trainer`."""
        name = self._names[id(parameter)]
        copy = self.tensors.get(f"{name}.working")
        if copy is None or copy.dtype is not dtype:
            return None
        return copy if parameter.data_ptr() == self.tensors[name].data_ptr() else None

    def lose(self, parameter: torch.Tensor) -> None:
        """See `mpcompile.weight_copies.Trainer`."""
        self._lost = self._lost or self._names[id(parameter)]

    def keep_buffers(self) -> None:
        """Note the buffers as they are before the first micro-batch of an update."""
        for name, kept in self.tensors.items():
            if name.startswith(BEFORE):
                kept.copy_(self.tensors[name.removeprefix(BEFORE)])

    def refresh(self) -> None:
        """Write the working copies again from the masters, also those of weights that are read."""
        self._check_places()
        self.rewrite()
        self._read.rewrite()

    def catch_up(self) -> None:
        """See `mpcompile.weight_copies.Trainer`."""
        if self._versions() != self._written:
            self.rewrite()

    def rewrite(self) -> None:
        """Write the step's own working copies again from the masters."""
        with torch.no_grad():
            for arena in self._step.arenas:
                working = self.tensors.get(f"{arena.name}.working")
                if working is not None:
                    master = self.tensors[f"{arena.name}.master"]
                    working.copy_(master[: working.shape[0]] if arena.flat else master)
        self._written = self._versions()

    def _versions(self) -> int:
        """Count the in-place writes to parameters; the step's own writes do not show here."""
        return sum(version_of(parameter) for parameter in self._trained)

    def _check_places(self) -> None:
        """Raise BadInput if another step trains the parameters, or they lie elsewhere by now."""
        if self._lost:
            raise BadInput(
                f"{self._lost} has moved to a step that was compiled later and trains it too",
                "",
                "use that step, or leave the parameter out of one of the two optimizers and "
                "compile both again",
            )
        for parameter, place in self._first:
            if parameter.data_ptr() != place:
                raise BadInput(
                    "the model's parameters have moved since this step was compiled",
                    "",
                    "compile again after model.to(...)",
                )

    def _bind_arenas(self, initial: dict[str, dict[str, torch.Tensor]]) -> None:
        """Move parameters and optimizer state into arenas, and point the user's tensors there."""
        for arena in self._step.arenas:
            parameters = [self._parameters[name] for name in arena.parameters]
            self._trained += parameters
            master = torch.zeros(arena.shape, dtype=torch.float32, device=self._device)
            self.tensors[f"{arena.name}.master"] = master
            views = arena_views(arena, master)
            for name, parameter, view in zip(arena.parameters, parameters, views, strict=True):
                view.copy_(parameter.detach())
                parameter.data = view
                self.tensors[name] = view
            self._first.append((parameters[0], parameters[0].data_ptr()))
            self._bind_optimizer_states(arena, initial[arena.name])
            working = self._step.slots.get(f"{arena.name}.working")
            if working is not None:
                copy = torch.empty(working.shape, dtype=working.dtype, device=self._device)
                copy.copy_(master[: working.shape[0]] if arena.flat else master)
                self.tensors[working.name] = copy
                names = [name for name in arena.parameters if name in self._step.working]
                for name, view in zip(names, arena_views(arena, copy), strict=False):
                    self.tensors[f"{name}.working"] = view
                self._bind_joined(self._step, arena)

    def _bind_joined(self, step: StepGraph, arena: Arena) -> None:
        """Bind the slots that are views of several of an arena's working copies."""
        for name, members in step.joined.items():
            if members[0] in arena.parameters:
                slot, start = step.slots[name], arena.offset_of(members[0])
                copy = self.tensors[f"{arena.name}.working"]
                self.tensors[name] = copy[start : start + prod(slot.shape)].view(slot.shape)

    def _adopt_what_is_loaded(self) -> None:
        """Let the optimizer's ``load_state_dict`` call `adopt`, without keeping this alive."""
        method = weakref.WeakMethod(self._adopt_unless_lost)

        def adopt(_: torch.optim.Optimizer) -> None:
            held = method()
            if held is not None:
                held()

        hook = self._optimizer.register_load_state_dict_post_hook(adopt)
        weakref.finalize(self, hook.remove)

    def _adopt_unless_lost(self) -> None:
        if not self._lost:
            self.adopt()

    def adopt(self) -> None:
        """Take over what somebody has put in place of the arenas' views, or written to them."""
        for arena in self._step.arenas:
            self._bind_optimizer_states(arena, self._initial[arena.name])
        self.refresh()

    def _bind_optimizer_states(self, arena: Arena, initial: Mapping[str, torch.Tensor]) -> None:
        """Take over an arena's optimizer state; it has begun if it is not as before any step."""
        states = [self._optimizer.state.get(self._parameters[n], {}) for n in arena.parameters]
        begun = f"{arena.name}.{BEGUN}"
        if begun in self._step.slots:
            self.tensors.setdefault(begun, torch.zeros((), device=self._device))
            self.tensors[begun].fill_(has_begun(states, initial))
        for key, first in initial.items():
            self._bind_optimizer_state(arena, key, first)

    def _bind_optimizer_state(self, arena: Arena, key: str, first: torch.Tensor) -> None:
        """Take over one kind of optimizer state, or start it, and point the user's entries at it.

        Each parameter gets memory of its own, so that a checkpoint can be loaded anywhere.
        """
        slot = self._step.slots[f"{arena.name}.{key}"]
        state = self.tensors.get(slot.name)
        if state is None:
            state = torch.zeros(slot.shape, dtype=slot.dtype, device=self._device)
            self.tensors[slot.name] = state
        numbers = arena.flat and first.dim() == 0
        for name, view in zip(
            arena.parameters, state.unbind() if numbers else arena_views(arena, state), strict=True
        ):
            entry = self._optimizer.state[self._parameters[name]]
            if key in entry and isinstance(entry[key], torch.Tensor):
                view.copy_(entry[key])
            else:
                view.fill_(first.flatten()[0])
            entry[key] = view

    def _read_weights(self, step: StepGraph) -> None:
        for slot in step.slots.values():
            if slot.role in (Role.CONSTANT, Role.SHARED):
                parameter = self._parameters[step.members(slot.name)[0]]
                self._read.add(slot.name, parameter, slot.dtype)

    def _bind_rest(self) -> None:
        self._read_weights(self._step)
        for slot in self._step.slots.values():
            if slot.name in self.tensors:
                continue
            if slot.role is Role.BUFFER:
                self.tensors[slot.name] = self._parameters[slot.name].detach()
            elif slot.role in (
                Role.SCALE,
                Role.TRACKER,
                Role.COUNTER,
                Role.HYPER,
                Role.PENDING,
                Role.REPORT,
            ):
                first = self._rule.initial if slot.role is Role.SCALE else 0
                self.tensors[slot.name] = torch.full(
                    slot.shape, first, dtype=slot.dtype, device=self._device
                )
