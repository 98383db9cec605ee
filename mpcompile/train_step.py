"""`TrainStep`: the callable a user gets, and the state behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from mpcompile.cuda_graph import CapturedStep, Step
from mpcompile.errors import BadInput
from mpcompile.loss_scale import LossScale
from mpcompile.lower_torch import Backend, lower
from mpcompile.optimizer_options import OptionInputs
from mpcompile.passes.adjust_scale import TRACKER
from mpcompile.passes.count_steps import SKIPPED, TAKEN
from mpcompile.passes.scale_loss import SCALE
from mpcompile.plan import Plan
from mpcompile.start_of_state import BEGUN, has_begun
from mpcompile.step import Arena, Role, StepGraph, arena_views
from mpcompile.torch_graph import Forward
from mpcompile.torch_private import note_step, version_of
from mpcompile.workload import Workload


class TrainStep:
    """One compiled training step: call it with a batch, get the loss.

    The model's parameters are the FP32 masters and the optimizer's state is the one that the graph
    updates: both are views of the step's arenas, so ``model.state_dict()`` and
    ``optimizer.state_dict()`` hold what they always hold. After writing weights other than through
    PyTorch's own operations on the parameters (``param.data``), call `refresh`.

    Attributes:
        plan: what runs in which precision, and why.
        forward: the forward graph with its casts.
        step: gradient graph, update graph and slots.
        backend: ``"interpreter"`` or ``"inductor"``.
    """

    def __init__(
        self,
        workload: Workload,
        forward: Forward,
        plan: Plan,
        step: StepGraph,
        initial: dict[str, dict[str, torch.Tensor]],
        scale: LossScale,
        backend: Backend,
        memory_budget: float = 1.0,
        cuda_graph: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        assert workload.optimizer is not None
        self.plan, self.forward, self.step, self.backend = plan, forward, step, backend
        self._model, self._optimizer, self._rule = workload.model, workload.optimizer, scale
        self._device = next(iter(workload.model.parameters())).device
        self._parameters = {item.name: item.tensor for item in forward.inputs}
        self._state: dict[str, torch.Tensor] = {}
        self._trained: list[torch.Tensor] = []
        self._first: list[tuple[torch.Tensor, int]] = []
        self._lowered = lower(step, backend, self._device, memory_budget, options)
        self._bind_arenas(initial)
        self._bind_rest()
        self._batch = [slot for slot in step.slots.values() if slot.role is Role.BATCH]
        self._layouts = [(value.device, value.stride()) for value in workload.batch]
        wanted = {slot.name: position for position, slot in enumerate(self._batch)}
        self._inputs: list[Any] = [self._state.get(name) for name in self._lowered.gradient_inputs]
        self._places = [
            (place, wanted[name])
            for place, name in enumerate(self._lowered.gradient_inputs)
            if name in wanted
        ]
        self._update_inputs: list[Any] = [
            self._state.get(name) for name in self._lowered.update_inputs
        ]
        made = {name: place for place, name in enumerate(self._lowered.gradient_results)}
        self._passed = [
            (place, made[name])
            for place, name in enumerate(self._lowered.update_inputs)
            if name not in self._state
        ]
        self._options = OptionInputs(self._optimizer, step.guards, self._state)
        self._initial = initial
        self._optimizer.register_load_state_dict_post_hook(self._adopt)
        self._written = self._versions()
        self._run: Step = self._run_once
        if cuda_graph and backend == "inductor" and self._device.type == "cuda":
            self._run = CapturedStep(self._run_once, self._lowered.obstacle)

    def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
        """Run one step.

        Args:
            batch: tensors of the shapes and dtypes of the example batch.

        Returns:
            The unscaled loss before the update: 0-d FP32, on the model's device, not copied to the
            host.

        Raises:
            BadInput: the batch does not fit the compiled shapes.
        """
        given = self._prepare(batch)
        self._options.hand_over()
        loss = self._run(given)
        note_step(self._optimizer)
        return loss

    def _run_once(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run gradient graph and update graph."""
        results = self._differentiate(batch)
        inputs = self._update_inputs
        for place, position in self._passed:
            inputs[place] = results[position]
        with torch.no_grad():
            self._lowered.update(*inputs)
        for place, _ in self._passed:
            inputs[place] = None
        loss: torch.Tensor = results[0]
        return loss

    def gradients(self, *batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run forward and backward only, and return each weight's unscaled FP32 gradient.

        Nothing changes but the random state, if the model draws random numbers.

        Args:
            batch: as for a step.
        """
        results = self._differentiate(self._prepare(batch))
        named = zip(self._lowered.gradient_results, results, strict=True)
        scale = self._state.get(SCALE)
        inverse = 1.0 if scale is None else scale.double().reciprocal().float()
        return {
            name.removeprefix("grad."): value.float() * inverse
            for name, value in named
            if self.step.slots[name].role is Role.GRADIENT
        }

    def values(self, *batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the gradient graph reads for a batch, by slot: state and batch, no copies.

        Args:
            batch: as for a step.
        """
        given = self._prepare(batch)
        named = dict(zip(self._lowered.gradient_inputs, self._inputs, strict=True))
        names = self._lowered.gradient_inputs
        return named | {names[place]: given[position].detach() for place, position in self._places}

    def masters(self) -> dict[str, torch.Tensor]:
        """Return, per slot of the gradient graph that is a working copy, its FP32 masters."""
        found = {}
        for name in self._lowered.gradient_inputs:
            slot = self.step.slots[name]
            if slot.role is Role.WORKING:
                first = self.step.members(name)[0]
                arena = self.step.arena_of(first)
                master = self._state[f"{arena.name}.master"]
                start = arena.offset_of(first) if arena.flat else 0
                found[name] = master.flatten()[start : start + prod(slot.shape)].view(slot.shape)
        return found

    def _prepare(self, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Take over what was written to the weights; return the batch, laid out as the example."""
        self._check(batch)
        if self._versions() != self._written:
            self.refresh()
        return [
            value
            if value.stride() == stride
            else value.new_empty_strided(value.shape, stride).copy_(value)
            for value, (_, stride) in zip(batch, self._layouts, strict=True)
        ]

    def _differentiate(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run the gradient graph."""
        inputs = self._inputs
        for place, position in self._places:
            inputs[place] = batch[position].detach()
        # No input asks for a gradient, so none is recorded. Without grad mode oneDNN's LSTM would
        # keep nothing for the backward that stands in the graph.
        with torch.enable_grad():
            results: Sequence[torch.Tensor] = self._lowered.gradient(*inputs)
        for place, _ in self._places:
            inputs[place] = None
        return results

    def refresh(self) -> None:
        """Write the working copies again from the masters."""
        with torch.no_grad():
            for arena in self.step.arenas:
                working = self._state.get(f"{arena.name}.working")
                if working is not None:
                    master = self._state[f"{arena.name}.master"]
                    working.copy_(master[: working.shape[0]] if arena.flat else master)
        self._written = self._versions()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._device

    @property
    def loss_scale(self) -> float:
        """The current loss scale; 1 if there is none. Reads it from the device."""
        return float(self._state[SCALE]) if SCALE in self._state else 1.0

    @property
    def taken(self) -> int:
        """Steps whose update was applied. Reads the counter from the device."""
        return int(self._state[TAKEN])

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient was not finite. Reads the counter from the device."""
        return int(self._state[SKIPPED])

    @property
    def forward_graph(self) -> fx.GraphModule:
        """The forward graph with its casts."""
        return self.forward.module

    @property
    def step_graph(self) -> fx.GraphModule:
        """The whole step as one functional graph: state and batch in, next state and loss out."""
        return self.step.whole()

    def scaler_state(self) -> dict[str, float | int]:
        """Return the loss scale's state under the keys of ``torch.amp.GradScaler.state_dict``.

        Without loss scaling it is empty, as that of a disabled scaler.
        """
        if not self._rule.active:
            return {}
        return {
            "scale": self.loss_scale,
            "growth_factor": self._rule.growth,
            "backoff_factor": self._rule.backoff,
            "growth_interval": self._rule.interval,
            "_growth_tracker": int(self._state[TRACKER]) if TRACKER in self._state else 0,
        }

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Take over scale and tracker from a ``GradScaler.state_dict()``.

        Factors and interval are constants of the compiled graph and must agree.

        Raises:
            BadInput: a key is missing, or a factor differs.
        """
        mine = self.scaler_state()
        if set(state) != set(mine):
            raise BadInput(
                f"the scaler state has the keys {sorted(state)}", "", f"give {sorted(mine)}"
            )
        for key in ("growth_factor", "backoff_factor", "growth_interval"):
            if key in mine and state[key] != mine[key]:
                raise BadInput(
                    f"{key} is {state[key]} in the state and {mine[key]} in this step",
                    "",
                    "compile with a LossScale of the same factors",
                )
        if mine:
            self._state[SCALE].fill_(state["scale"])
        if TRACKER in self._state:
            self._state[TRACKER].fill_(state["_growth_tracker"])

    def _check(self, batch: Sequence[torch.Tensor]) -> None:
        if len(batch) != len(self._batch):
            raise BadInput(
                f"the step was called with {len(batch)} tensors",
                "",
                f"give {len(self._batch)}, as in the example batch",
            )
        for value, slot, (device, _) in zip(batch, self._batch, self._layouts, strict=True):
            if value.device != device:
                raise BadInput(
                    f"{slot.name} is on {value.device}, the example batch was on {device}",
                    "",
                    f"move it there, for example {slot.name}.to({str(device)!r})",
                )
            if value.shape != slot.shape or value.dtype is not slot.dtype:
                raise BadInput(
                    f"{slot.name} is {str(value.dtype).removeprefix('torch.')}"
                    f"{list(value.shape)}, the step was compiled for "
                    f"{str(slot.dtype).removeprefix('torch.')}{list(slot.shape)}",
                    "",
                    "compile another step for these shapes, or drop the last, smaller batch",
                )

    def _versions(self) -> int:
        """Count the in-place writes to parameters; the step's own writes do not show here.

        Raises BadInput if the parameters lie elsewhere by now.
        """
        for parameter, place in self._first:
            if parameter.data_ptr() != place:
                raise BadInput(
                    "the model's parameters have moved since this step was compiled",
                    "",
                    "compile again after model.to(...), or use the step that was compiled last",
                )
        return sum(version_of(parameter) for parameter in self._trained)

    def _bind_arenas(self, initial: dict[str, dict[str, torch.Tensor]]) -> None:
        """Move parameters and optimizer state into arenas, and point the user's tensors there."""
        for arena in self.step.arenas:
            parameters = [self._parameters[name] for name in arena.parameters]
            self._trained += parameters
            master = torch.zeros(arena.shape, dtype=torch.float32, device=self._device)
            self._state[f"{arena.name}.master"] = master
            views = arena_views(arena, master)
            for name, parameter, view in zip(arena.parameters, parameters, views, strict=True):
                view.copy_(parameter.detach())
                parameter.data = view
                self._state[name] = view
            self._first.append((parameters[0], parameters[0].data_ptr()))
            self._bind_optimizer_states(arena, initial[arena.name])
            working = self.step.slots.get(f"{arena.name}.working")
            if working is not None:
                copy = torch.empty(working.shape, dtype=working.dtype, device=self._device)
                copy.copy_(master[: working.shape[0]] if arena.flat else master)
                self._state[working.name] = copy
                names = [name for name in arena.parameters if name in self.step.working]
                for name, view in zip(names, arena_views(arena, copy), strict=False):
                    self._state[f"{name}.working"] = view
                for name, members in self.step.joined.items():
                    if members[0] in names:
                        slot, start = self.step.slots[name], arena.offset_of(members[0])
                        view = copy[start : start + prod(slot.shape)].view(slot.shape)
                        self._state[name] = view

    def _adopt(self, _: torch.optim.Optimizer) -> None:
        """Take over what ``optimizer.load_state_dict`` has put in place of the arenas' views."""
        for arena in self.step.arenas:
            self._bind_optimizer_states(arena, self._initial[arena.name])

    def _bind_optimizer_states(self, arena: Arena, initial: Mapping[str, torch.Tensor]) -> None:
        """Take over an arena's optimizer state; it has begun if it is not as before any step."""
        states = [self._optimizer.state.get(self._parameters[n], {}) for n in arena.parameters]
        begun = f"{arena.name}.{BEGUN}"
        if begun in self.step.slots:
            self._state.setdefault(begun, torch.zeros((), device=self._device))
            self._state[begun].fill_(has_begun(states, initial))
        for key, first in initial.items():
            self._bind_optimizer_state(arena, key, first)

    def _bind_optimizer_state(self, arena: Arena, key: str, first: torch.Tensor) -> None:
        """Take over one kind of optimizer state, or start it, and point the user's entries at it.

        Each parameter gets memory of its own, so that a checkpoint can be loaded anywhere.
        """
        slot = self.step.slots[f"{arena.name}.{key}"]
        state = self._state.get(slot.name)
        if state is None:
            state = torch.zeros(slot.shape, dtype=slot.dtype, device=self._device)
            self._state[slot.name] = state
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

    def _bind_rest(self) -> None:
        for slot in self.step.slots.values():
            if slot.name in self._state:
                continue
            if slot.role in (Role.BUFFER, Role.CONSTANT):
                self._state[slot.name] = self._parameters[slot.name].detach()
            elif slot.role in (Role.SCALE, Role.TRACKER, Role.COUNTER, Role.HYPER):
                first = self._rule.initial if slot.role is Role.SCALE else 0
                self._state[slot.name] = torch.full(
                    slot.shape, first, dtype=slot.dtype, device=self._device
                )
