"""The update graph: the optimizer's own ``step()``, traced over arenas."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture
from mpcompile.record import record
from mpcompile.step import ALIGNMENT, Arena, Role, Slot, results
from mpcompile.torch_private import (
    DataDependent,
    drop_profiler_nodes,
    fake_like,
    fake_mode,
    functionalized,
    is_pointwise,
    op_name,
    rename,
)

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Update:
    """A traced update.

    Attributes:
        module: the update graph. It reads, per arena, the master, the optimizer's state and one
            FP32 gradient of the master's shape, and per parameter group its learning rate; it
            returns the next master and state. A number that the optimizer keeps per parameter (a
            step counter) is one vector per arena, so that each parameter owns an element of it;
            the graph computes one and writes it to all.
        slots: its slots.
        arenas: where the parameters lie.
        initial: per arena the value each state tensor starts with: a 0-d tensor, which fills the
            state tensor whatever its shape.
    """

    module: fx.GraphModule
    slots: dict[str, Slot]
    arenas: tuple[Arena, ...]
    initial: dict[str, State]


def trained_parameters(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], origin: str
) -> list[list[str]]:
    """Return, per parameter group, the names of the parameters the optimizer trains.

    Args:
        optimizer: the user's.
        names: ``id(parameter)`` to its name in the captured graph.
        origin: the user's place for error messages.

    Raises:
        BadInput: the optimizer needs a closure, or holds a parameter that is not the model's.
    """
    kind = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise BadInput(
            f"{kind}.step() needs a closure, so one step is not one graph",
            origin,
            "use an optimizer whose step() takes none, for example AdamW",
        )
    groups: list[list[str]] = []
    for index, group in enumerate(optimizer.param_groups):
        members: list[str] = []
        for position, parameter in enumerate(group["params"]):
            if not parameter.requires_grad:
                continue
            name = names.get(id(parameter))
            if name is None:
                raise BadInput(
                    f"parameter {position} of the optimizer's group {index}, of shape "
                    f"{list(parameter.shape)}, is not reached by the loss",
                    origin,
                    "leave it out of the optimizer, or use it in the loss",
                )
            if parameter.dtype is not torch.float32:
                raise BadInput(
                    f"the parameter {name} is {str(parameter.dtype).removeprefix('torch.')}",
                    origin,
                    "start from an FP32 model; mpcompile makes the 16-bit copies itself",
                )
            members.append(name)
        groups.append(members)
    if not any(groups):
        raise BadInput("the optimizer trains no parameter", origin, "give it model.parameters()")
    return groups


def trace_update(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[str]],
    cast: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
    origin: str,
) -> Update:
    """Trace ``optimizer.step()``.

    An elementwise optimizer sees a parameter group as one flat parameter, or as two: weights that
    get a working copy lie apart from the others. One kernel then reads and writes all of an arena;
    a working copy of a part of it would be another pass over the masters. Whether an optimizer is
    elementwise is read off the traced graph. Any other is traced a parameter at a time.

    Args:
        optimizer: the user's; neither it nor its parameters are touched.
        groups: names of the trained parameters per group (`trained_parameters`).
        cast: names of those that the gradient graph casts to 16 bits.
        shapes: their shapes.
        device: where the update runs.
        origin: the user's place for error messages.

    Raises:
        CannotCapture: ``step()`` depends on values in a way a graph cannot express.
    """
    parts = [
        (index, [name for name in names if (name in cast) is narrow])
        for index, names in enumerate(groups)
        for narrow in (True, False)
    ]
    flat = tuple(
        Arena(f"arena{number}", index, tuple(names), tuple(shapes[n] for n in names), flat=True)
        for number, (index, names) in enumerate((index, names) for index, names in parts if names)
    )
    try:
        update = _trace(optimizer, flat, device)
        if _elementwise(update):
            return replace(
                update,
                arenas=tuple(
                    replace(arena, zeros=_keeps_zeros(optimizer, arena, update.initial[arena.name]))
                    for arena in flat
                ),
            )
    except (RuntimeError, ValueError):
        pass  # it refuses flat parameters (Muon); tried again with their own shapes below
    single = tuple(
        Arena(f"arena{number}", index, (name,), (shapes[name],), flat=False)
        for number, (index, name) in enumerate(
            (index, name) for index, names in enumerate(groups) for name in names
        )
    )
    try:
        return _trace(optimizer, single, device)
    except DataDependent as error:
        raise CannotCapture(
            f"{type(optimizer).__name__}.step() decides in Python by the value of a tensor",
            origin,
            "use an optimizer without such a branch, for example AdamW",
        ) from error


class _Recorded(dict[str, Any]):
    """An optimizer state that remembers the first value of each entry."""

    def __init__(self) -> None:
        super().__init__()
        self.first: State = {}

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.first and isinstance(value, torch.Tensor):
            self.first[key] = value.detach().clone()
        super().__setitem__(key, value)


def optimizer_around(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], state: Mapping[Any, Any]
) -> torch.optim.Optimizer:
    """Return the user's optimizer around other parameters and state.

    Step it with ``type(it).step(it)``: a schedule may have put another ``step`` on the user's own.
    """
    shell: torch.optim.Optimizer = object.__new__(type(optimizer))
    shell.__dict__.update(optimizer.__dict__)
    shell.param_groups = groups
    shell.state = state  # type: ignore[assignment]
    return shell


def _group(optimizer: torch.optim.Optimizer, arena: Arena, **changes: Any) -> dict[str, Any]:
    """Return the options of an arena's group, without those that pick a special kernel."""
    group = {**optimizer.param_groups[arena.group]}
    for option in ("foreach", "fused", "capturable", "differentiable"):
        if option in group:
            group[option] = False
    return {**group, **changes}


def initial_state(optimizer: torch.optim.Optimizer, arena: Arena) -> State:
    """Return what the optimizer's state holds before the first step, as small tensors.

    Found by letting ``step()`` fill an empty state on a small parameter (the parameter's own shape
    where it matters) and noting the first value of each entry.

    Raises:
        CannotCapture: the first step is not the others with that state, as in SGD with dampening.
    """
    shape = (ALIGNMENT,) if arena.flat else arena.shape
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (torch.randn(shape, generator=generator) for _ in range(3))

    def run(state: dict[str, Any]) -> torch.Tensor:
        parameter = weight.clone()
        shell = optimizer_around(
            optimizer,
            [_group(optimizer, arena, params=[parameter])],
            defaultdict(dict, {parameter: state}),
        )
        for gradient in gradients:
            parameter.grad = gradient.clone()
            type(shell).step(shell)
        return parameter

    zeros = torch.zeros(shape)
    zeros.grad = torch.zeros(shape)
    recorded = _Recorded()
    # Adagrad and others fill the state when they are made, so start from what there is.
    template: dict[str, Any] = next(
        (s for p, s in optimizer.state.items() if not isinstance(p, str)), {}
    )
    for key, value in template.items():
        if isinstance(value, torch.Tensor):
            whole = value.dim() == 0
            recorded[key] = torch.zeros(()) if whole else torch.zeros(shape, dtype=value.dtype)
    shell = optimizer_around(
        optimizer,
        [_group(optimizer, arena, params=[zeros])],
        defaultdict(dict, {zeros: recorded}),
    )
    type(shell).step(shell)
    if not template and not torch.equal(
        run({}), run({key: value.clone() for key, value in recorded.first.items()})
    ):
        raise CannotCapture(
            f"the first step of {type(optimizer).__name__} differs from its later ones",
            "",
            "with SGD, set dampening=0",
        )
    return recorded.first


def _keeps_zeros(optimizer: torch.optim.Optimizer, arena: Arena, initial: State) -> bool:
    """Whether weights of 0 with a state and gradients of 0 stay 0: two steps are run on some."""
    zeros = torch.zeros(ALIGNMENT)
    state = {
        key: torch.zeros(ALIGNMENT, dtype=value.dtype) if value.dim() else value.clone()
        for key, value in initial.items()
    }
    shell = optimizer_around(
        optimizer, [_group(optimizer, arena, params=[zeros])], defaultdict(dict, {zeros: state})
    )
    for _ in range(2):
        zeros.grad = torch.zeros(ALIGNMENT)
        type(shell).step(shell)
    return not zeros.any()


def _trace(
    optimizer: torch.optim.Optimizer, arenas: tuple[Arena, ...], device: torch.device
) -> Update:
    by_group: dict[int, State] = {}
    initial: dict[str, State] = {}
    for arena in arenas:
        if arena.flat and arena.group in by_group:
            initial[arena.name] = by_group[arena.group]
        else:
            initial[arena.name] = by_group[arena.group] = initial_state(optimizer, arena)
    used = sorted({arena.group for arena in arenas})
    reads: list[Slot] = []
    counts: dict[str, int] = {}
    for arena in arenas:
        reads.append(Slot(f"{arena.name}.master", Role.MASTER, arena.shape, torch.float32))
        for key, value in initial[arena.name].items():
            shape = state_shape(arena, value)
            reads.append(Slot(f"{arena.name}.{key}", Role.OPTIMIZER, shape, value.dtype))
            if arena.flat and value.dim() == 0:
                counts[f"{arena.name}.{key}"] = shape[0]
    writes = [slot.name for slot in reads]
    reads += [
        Slot(f"{arena.name}.grad", Role.PACKED, arena.shape, torch.float32) for arena in arenas
    ]
    reads += [Slot(f"group{index}.lr", Role.HYPER, (), torch.float64) for index in used]
    slots = {slot.name: slot for slot in reads}

    def update(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = {slot.name: value for slot, value in zip(reads, values, strict=True)}
        held = {
            name: (given[name].select(0, 0) if name in counts else given[name]).clone()
            for name in writes
        }
        state: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        groups = []
        rates = {index: given[f"group{index}.lr"].item() for index in used}
        for arena in arenas:
            master = held[f"{arena.name}.master"]
            master.grad = given[f"{arena.name}.grad"]
            state[master] = {key: held[f"{arena.name}.{key}"] for key in initial[arena.name]}
            groups.append(_group(optimizer, arena, params=[master], lr=rates[arena.group]))
        shell = optimizer_around(optimizer, groups, defaultdict(dict, state))
        type(shell).step(shell)
        for arena in arenas:
            after = shell.state[held[f"{arena.name}.master"]]
            held |= {f"{arena.name}.{key}": after[key] for key in initial[arena.name]}
        return tuple(
            held[name].expand(counts[name]) if name in counts else held[name] for name in writes
        )

    mode = fake_mode()
    with torch.no_grad():
        inputs = [fake_like(mode, slot.shape, slot.dtype, device) for slot in reads]
        module = record(functionalized(update), inputs, mode)
    graph = module.graph
    drop_profiler_nodes(graph)
    for node, slot in zip(list(graph.find_nodes(op="placeholder")), reads, strict=True):
        rename(node, slot.name)
        node.meta["slot"] = slot.name
    for node in list(graph.nodes):  # the clones that kept the trace from writing its inputs
        source = node.args[0] if node.args else None
        if op_name(node) == "clone" and isinstance(source, fx.Node) and source.op == "placeholder":
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.output_node().meta["slots"] = tuple(writes)
    graph.eliminate_dead_code()
    return Update(module, slots, arenas, initial)


def state_shape(arena: Arena, first: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of an optimizer state's slot, given its small first value."""
    if not arena.flat:
        return tuple(first.shape)
    return arena.shape if first.dim() > 0 else (len(arena.parameters),)


def _elementwise(update: Update) -> bool:
    """Whether no element of a flat arena meets another one in the update graph."""
    lengths = {math.prod(arena.shape) for arena in update.arenas}
    # Where a per-parameter number is taken from its vector and written back.
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
