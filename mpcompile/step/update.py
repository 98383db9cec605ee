"""The update graph: the optimizer's own ``step()``, traced over arenas."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx

from mpcompile.errors import CannotCapture
from mpcompile.program.marks import SLOT, SLOTS
from mpcompile.program.numbers.formulas import Guard
from mpcompile.step.arena import Arena
from mpcompile.step.graph import results
from mpcompile.step.optimizer_options import is_input, parts, replaced
from mpcompile.step.optimizer_start import (
    BEGUN,
    Start,
    State,
    StepFails,
    acts_alone,
    group_of,
    keeps_zeros,
    optimizer_around,
    start_of,
    state_shape,
)
from mpcompile.step.record import record
from mpcompile.step.recorded_number import Numbers, python_takes_numbers
from mpcompile.step.slots import Role, Slot
from mpcompile.torch_private.graphs import drop_profiler_nodes, rename
from mpcompile.torch_private.guarding import plain_step
from mpcompile.torch_private.ops import is_pointwise, op_name
from mpcompile.torch_private.tensors import fake_like, fake_mode
from mpcompile.torch_private.tracing import DataDependent, functionalized


@dataclass(frozen=True, slots=True)
class Update:
    """A traced update.

    Attributes:
        module: the update graph. It reads, per arena, the master, the optimizer's state and one
            FP32 gradient of the master's shape, and the options of the parameter groups that its
            arithmetic uses; it returns the next master and state. A number that the optimizer
            keeps per parameter (a step counter) is one vector per arena, so that each parameter
            owns an element of it; the graph computes one and writes it to all.
        slots: its slots.
        arenas: where the parameters lie.
        initial: per arena the start value of each state tensor: a 0-d tensor, which fills a state
            tensor of any shape.
        options: the value of each option that is an input, by slot.
        guards: comparisons of options by which ``step()`` decided in Python.
    """

    module: fx.GraphModule
    slots: dict[str, Slot]
    arenas: tuple[Arena, ...]
    initial: dict[str, State]
    options: dict[str, float]
    guards: tuple[Guard, ...]


def trace_update(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[str]],
    cast: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
    origin: str | None,
    ranks: int = 1,
    progress: Mapping[str, Hashable] | None = None,
) -> Update:
    """Trace ``optimizer.step()``.

    An elementwise optimizer sees a parameter group as one flat parameter, or as two: weights that
    get a working copy are stored apart from the others. One kernel then reads and writes all of an
    arena; a working copy of a part of it would need another pass over the masters. The traced graph
    shows whether an optimizer is elementwise. All others are traced one parameter at a time, and so
    is one whose own ``step()`` refuses flat parameters. An error of any other kind is raised, so
    that a defect in the tracing of flat arenas does not only make the update slow.

    Args:
        optimizer: the user's; neither it nor its parameters are changed.
        groups: names of the trained parameters per group (`trained_parameters`).
        cast: names of the parameters that the gradient graph casts to 16 bits.
        shapes: their shapes.
        device: where the update runs.
        origin: the user's source position for error messages.
        ranks: number of processes; each updates a slice of each flat arena.
        progress: parameters that differ in it are stored in arenas of their own, because an arena
            has one counter (`mpcompile.step.optimizer_start.progress_of`); None: none differ.

    Raises:
        CannotCapture: ``step()`` fails, or depends on values in a way that a graph cannot express.
    """
    progress = progress or {}
    parts = [
        (
            index,
            [name for name in names if (name in cast) is narrow and progress.get(name) == stage],
        )
        for index, names in enumerate(groups)
        for narrow in (True, False)
        for stage in dict.fromkeys(map(progress.get, names))
    ]

    def arena(number: int, part: tuple[int, Sequence[str]], flat: bool, ranks: int) -> Arena:
        each = tuple(shapes[name] for name in part[1])
        return Arena(f"arena{number}", part[0], tuple(part[1]), each, flat, ranks=ranks)

    filled = [part for part in parts if part[1]]
    flat = tuple(arena(k, part, True, ranks) for k, part in enumerate(filled))
    try:
        update = _trace(optimizer, flat, device)
        if _elementwise(update):
            return replace(
                update,
                arenas=tuple(
                    replace(arena, zeros=keeps_zeros(optimizer, arena, update.initial[arena.name]))
                    for arena in flat
                ),
            )
    except (StepFails, DataDependent):
        pass  # its own step() refuses flat parameters (Muon), or they meet in a branch
    alone = [(index, [name]) for index, names in enumerate(groups) for name in names]
    single = tuple(arena(k, part, False, 1) for k, part in enumerate(alone))
    try:
        return _trace(optimizer, single, device)
    except StepFails as error:
        raise CannotCapture(
            f"{type(optimizer).__name__}.step() fails on tensors of the parameters' shapes: "
            f"{error.__cause__}",
            origin,
            "call step() once in plain PyTorch to see where",
        ) from error.__cause__
    except DataDependent as error:
        raise CannotCapture(
            f"{type(optimizer).__name__}.step() has a Python branch that depends on the value of "
            "a tensor",
            origin,
            "use an optimizer without such a branch, for example AdamW",
        ) from error


def _trace(
    optimizer: torch.optim.Optimizer, arenas: tuple[Arena, ...], device: torch.device
) -> Update:
    """Trace over some arenas: all in one ``step()`` if that has no branches, else one at a time."""
    starts: dict[str, Start] = {}
    by_group: dict[int, Start] = {}
    for arena in arenas:
        if not (arena.flat and arena.group in by_group):
            by_group[arena.group] = start_of(optimizer, arena)
        starts[arena.name] = by_group[arena.group]
    if all(start.alike for start in starts.values()):
        try:
            return _record(_Trace(optimizer, arenas, starts, device, apart=False))
        except DataDependent:
            pass
    if not all(acts_alone(optimizer, arena) for arena in arenas):
        raise DataDependent("a branch of a step in which parameters meet")
    return _record(_Trace(optimizer, arenas, starts, device, apart=True))


@dataclass(frozen=True)
class _Trace:
    """The subject of a trace.

    Attributes:
        optimizer: the user's.
        arenas: its parameters.
        starts: the state's start per arena.
        device: where the update runs.
        apart: whether ``step()`` is called once per arena and both sides of branches are recorded.
    """

    optimizer: torch.optim.Optimizer
    arenas: tuple[Arena, ...]
    starts: dict[str, Start]
    device: torch.device
    apart: bool

    def state(self) -> list[Slot]:
        """Return the slots that the update reads and writes."""
        slots = []
        for arena in self.arenas:
            start = self.starts[arena.name]
            slots.append(Slot(f"{arena.name}.master", Role.MASTER, arena.shape, torch.float32))
            for key, value in start.state.items():
                shape = state_shape(arena, value)
                slots.append(Slot(f"{arena.name}.{key}", Role.OPTIMIZER, shape, value.dtype))
            if not start.alike:
                slots.append(Slot(f"{arena.name}.{BEGUN}", Role.OPTIMIZER, (), torch.float32))
        return slots

    def options(self) -> dict[str, Any]:
        """Return the options that are inputs, by slot."""
        return {
            f"group{index}.{name}": value
            for index in sorted({arena.group for arena in self.arenas})
            for name, value in parts(self.optimizer.param_groups[index])
            if is_input(name, value)
        }

    def counts(self) -> dict[str, int]:
        """Return how many parameters share a number, per slot of such a number."""
        return {
            f"{arena.name}.{key}": len(arena.parameters)
            for arena in self.arenas
            for key, value in self.starts[arena.name].state.items()
            if arena.flat and value.dim() == 0
        }

    def numbers(self, given: Mapping[str, torch.Tensor], known: Numbers) -> dict[str, Any]:
        """Return the options that the traced ``step()`` gets: numbers, or tensors for them."""
        found: dict[str, Any] = {}
        for name, value in self.options().items():
            if isinstance(value, torch.Tensor):
                found[name] = given[name].to(value.dtype)
            else:
                found[name] = known.option(given[name].item(), name, value)  # type: ignore[arg-type]
        return found

    def step(
        self,
        arenas: Sequence[Arena],
        given: Mapping[str, torch.Tensor],
        options: Mapping[str, Any],
        begun: Mapping[str, Any],
    ) -> State:
        """Run ``step()`` over some arenas; return their next state by slot."""
        counts = self.counts()
        held: State = {}
        state: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        groups = []
        for arena in arenas:
            keys = [f"{arena.name}.{key}" for key in ("master", *self.starts[arena.name].state)]
            held |= {
                key: (given[key].select(0, 0) if key in counts else given[key]).clone()
                for key in keys
            }
            master = held[f"{arena.name}.master"]
            master.grad = given[f"{arena.name}.grad"]
            state[master] = {}
            if arena.name not in begun or begun[arena.name] > 0:
                state[master] = {key.partition(".")[2]: held[key] for key in keys[1:]}
            prefix = f"group{arena.group}."
            mine = {k.removeprefix(prefix): v for k, v in options.items() if k.startswith(prefix)}
            groups.append(replaced(group_of(self.optimizer, arena, params=[master]), mine))
        shell = optimizer_around(self.optimizer, groups, defaultdict(dict, state))
        plain_step(shell)
        for arena in arenas:
            after = shell.state[held[f"{arena.name}.master"]]
            held |= {f"{arena.name}.{key}": after[key] for key in self.starts[arena.name].state}
        return held


def _record(trace: _Trace) -> Update:
    writes = trace.state()
    grads = [Slot(f"{a.name}.grad", Role.PACKED, a.shape, torch.float32) for a in trace.arenas]
    options = [Slot(name, Role.HYPER, (), torch.float64) for name in trace.options()]
    reads = [*writes, *grads, *options]
    counts, known = trace.counts(), Numbers()

    def update(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = {slot.name: value for slot, value in zip(reads, values, strict=True)}
        numbers = trace.numbers(given, known)
        begun = {
            arena.name: given[f"{arena.name}.{BEGUN}"].item()
            for arena in trace.arenas
            if not trace.starts[arena.name].alike
        }
        held = {f"{name}.{BEGUN}": torch.ones_like(given[f"{name}.{BEGUN}"]) for name in begun}
        if trace.apart:
            for arena in trace.arenas:
                held |= known.explore(partial(trace.step, [arena], given, numbers, begun))
        else:
            held |= trace.step(trace.arenas, given, numbers, begun)
        return tuple(
            held[slot.name].expand(counts[slot.name]) if slot.name in counts else held[slot.name]
            for slot in writes
        )

    mode = fake_mode()
    with torch.no_grad(), python_takes_numbers(type(trace.optimizer)):
        inputs = [fake_like(mode, slot.shape, slot.dtype, trace.device) for slot in reads]
        module = record(functionalized(update), inputs, mode, known)
    graph = module.graph
    drop_profiler_nodes(graph)
    for node, slot in zip(list(graph.find_nodes(op="placeholder")), reads, strict=True):
        rename(node, slot.name)
        SLOT[node] = slot.name
    for node in list(graph.nodes):  # the clones that protected the inputs of the trace from writes
        source = node.args[0] if node.args else None
        if op_name(node) == "clone" and isinstance(source, fx.Node) and source.op == "placeholder":
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    if trace.apart:
        _join_sides(graph)
    SLOTS[graph.output_node()] = tuple(slot.name for slot in writes)
    graph.eliminate_dead_code()
    slots = {slot.name: slot for slot in reads}
    for node in graph.find_nodes(op="placeholder"):
        if slots[SLOT[node]].role is Role.HYPER and not node.users:
            del slots[SLOT[node]]
            graph.erase_node(node)
    initial = {name: start.state for name, start in trace.starts.items()}
    values = {name: float(value) for name, value in trace.options().items() if name in slots}
    guards = tuple(dict.fromkeys(known.guards))
    return Update(module, slots, trace.arenas, initial, values, guards)


def _join_sides(graph: fx.Graph) -> None:
    """Compute ops that the sides of a branch share only once."""
    seen: dict[tuple[object, str, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        same = seen.setdefault(key, node)
        if op_name(node) == "where" and node.args[1] is node.args[2]:
            same = node.args[1]
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _elementwise(update: Update) -> bool:
    """Whether no op of the update graph combines two elements of a flat arena."""
    lengths = {math.prod(arena.shape) for arena in update.arenas}
    # Ops that read a per-parameter number from its vector and write it back.
    ends = {*update.module.graph.find_nodes(op="placeholder")}
    ends |= {
        item for node in results(update.module.graph).values() for item in node.all_input_nodes
    }
    return all(
        is_pointwise(node)
        for node in update.module.graph.nodes
        if node.op == "call_function"
        and not (op_name(node) in ("select", "expand") and node.args[0] in ends)
        and any(
            isinstance(item.meta.get("val"), torch.Tensor) and item.meta["val"].numel() in lengths
            for item in node.all_input_nodes
        )
    )
