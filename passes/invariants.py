"""Facts that are true of a step graph after each pass: its marks, dtypes and roles.

`INVARIANTS` is the table. A row is true after the pass that it names has run, or from the start,
until the pass that ends it has run. `StepGraph.check` checks that graphs and slots always fit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.passes.step.adjust_scale import TRACKER
from mpcompile.passes.step.count_steps import SKIPPED, TAKEN
from mpcompile.passes.step.report_outcome import APPLIED
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.casts import is_cast
from mpcompile.program.graph_text import type_text
from mpcompile.program.marks import (
    AVERAGED,
    BACKWARD,
    BACKWARD_SEED,
    CLIPPED,
    FINITE,
    GATHERED,
    MEASURE,
    NORM,
    PACKED,
    SHARED_NORM,
    SLOT,
    Mark,
)
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.graph import StepGraph, placeholders, results
from mpcompile.step.slots import Role
from mpcompile.torch_private.ops import op_name

Faults = Iterator[str]
"""The results of a check: a text per violation of the row; none if the row is true."""


class BrokenInvariant(Exception):
    """A pass has left a step graph that later passes cannot work on: a defect of mpcompile."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """A row of the table.

    Attributes:
        since: the pass after which the row is true; "" from the start.
        until: the pass after which it need not be true; "" to the end.
        says: the fact, as a sentence.
        faults: yields the violations.
    """

    since: str
    until: str
    says: str
    faults: Callable[[StepGraph], Faults]


_FLOATS = (torch.float32, *NARROW)
_DTYPES: dict[Role, tuple[torch.dtype, ...]] = {
    Role.MASTER: (torch.float32,),
    Role.WORKING: _FLOATS,  # FP32 only where the slices of an arena are gathered
    Role.SHARED: NARROW,
    Role.HYPER: (torch.float64,),
    Role.SCALE: (torch.float32,),
    Role.TRACKER: (torch.int32,),
    Role.COUNTER: (torch.int64,),
    Role.GRADIENT: _FLOATS,
    Role.PACKED: (torch.float32,),
}
_READ_BY_GRADIENT = (
    Role.BATCH, Role.MASTER, Role.WORKING, Role.BUFFER, Role.CONSTANT, Role.SHARED, Role.SCALE,
)  # fmt: skip
_RETURNED_BY_GRADIENT = (Role.LOSS, Role.GRADIENT, Role.UPDATED, Role.AUXILIARY)
_NORM_OP = "linalg_vector_norm"
_OF_UPDATE = (PACKED, CLIPPED, NORM, MEASURE, FINITE, AVERAGED, GATHERED, SHARED_NORM)


def _dtypes(step: StepGraph) -> Faults:
    for slot in step.slots.values():
        if slot.dtype not in _DTYPES.get(slot.role, (slot.dtype,)):
            yield str(slot)


def _roles(step: StepGraph) -> Faults:
    graph = step.gradient.graph
    for names, roles in (
        (placeholders(graph), _READ_BY_GRADIENT),
        (results(graph), _RETURNED_BY_GRADIENT),
    ):
        yield from (name for name in names if step.slots[name].role not in roles)


def _marks_of_update(step: StepGraph) -> Faults:
    for node in step.gradient.graph.nodes:
        yield from (f"{node}: {mark.key}" for mark in _OF_UPDATE if node in mark)


def _seed(step: StepGraph) -> Faults:
    seeds = _with(step.gradient.graph, BACKWARD_SEED)
    if len(seeds) != (SCALE not in step.slots):
        yield f"seeds: {seeds}, loss scale: {SCALE in step.slots}"


def _forward_first(step: StepGraph) -> Faults:
    for node in step.gradient.graph.nodes:
        if node.op == "call_function" and node not in BACKWARD:
            yield from (f"{node} reads {item}" for item in node.all_input_nodes if item in BACKWARD)


def _gradient_slots(step: StepGraph) -> Faults:
    made = results(step.gradient.graph)
    for arena in step.arenas:
        yield from (name for name in arena.parameters if f"grad.{name}" not in made)


def _unpacked(step: StepGraph) -> Faults:
    inputs = placeholders(step.update.graph)
    for arena in step.arenas:
        slot = step.slots.get(f"{arena.name}.grad")
        if slot is None or slot.role is not Role.PACKED or slot.name not in inputs:
            yield arena.name
    yield from map(str, _with(step.update.graph, PACKED))


def _packed(step: StepGraph) -> Faults:
    """Check shapes too: before `reduce_packed` a packed gradient may cover all slices."""
    found = {PACKED[node]: node for node in _with(step.update.graph, PACKED)}
    if sorted(found) != sorted(arena.name for arena in step.arenas):
        yield f"marks on {found}"
    for arena in step.arenas:
        node = found.get(arena.name)
        value = None if node is None else node.meta["val"]
        shapes = (arena.shape, (arena.length,))
        if value is not None and (
            value.dtype is not torch.float32 or tuple(value.shape) not in shapes
        ):
            yield f"{node}: {type_text(value)}"
    yield from (name for name, slot in step.slots.items() if slot.role is Role.PACKED)


def _reduced(step: StepGraph) -> Faults:
    shapes = {arena.name: arena.shape for arena in step.arenas if arena.ranks > 1}
    for node in _with(step.update.graph, PACKED):
        shape = shapes.get(PACKED[node])
        if shape is not None and tuple(node.meta["val"].shape) != shape:
            yield f"{node}: {type_text(node.meta['val'])}"


def _casts_of(role: Role) -> Callable[[StepGraph], Faults]:
    def faults(step: StepGraph) -> Faults:
        for name, node in placeholders(step.gradient.graph).items():
            if step.slots[name].role is role:
                casts = [user for user in node.users if is_cast(user)]
                yield from (str(cast) for cast in casts if cast.meta["val"].dtype in NARROW)

    return faults


def _working_first(step: StepGraph) -> Faults:
    for arena in step.arenas:
        narrow = [name in step.working for name in arena.parameters]
        if narrow != sorted(narrow, reverse=True):
            yield arena.name
        if any(narrow) and f"{arena.name}.working" not in results(step.update.graph):
            yield f"{arena.name}.working"
    for name in step.working:
        slot = step.slots.get(f"{name}.working")
        if slot is not None and slot.dtype not in NARROW:
            yield str(slot)


def _accumulated(step: StepGraph) -> Faults:
    if step.accumulation is None:
        return
    sums = results(step.accumulation.graph)
    yield from (a.name for a in step.arenas if f"{a.name}.sum" not in sums)
    passed = (Role.GRADIENT, Role.UPDATED)
    yield from (name for name in placeholders(step.update.graph) if step.slots[name].role in passed)


def _unscaled(step: StepGraph) -> Faults:
    if SCALE in step.slots:
        for node in _with(step.update.graph, PACKED):
            if op_name(node) != "mul":
                yield f"{node} is not divided by the scale"


def _clipped(step: StepGraph) -> Faults:
    graph = step.update.graph
    totals = [node for node in _with(graph, NORM) if NORM[node] == "total"]
    if len(totals) > 1 or any(node.meta["val"].dim() for node in totals):
        yield f"norms: {totals}"
    if clipped := _with(graph, CLIPPED):
        if len(clipped) != len(step.arenas):
            yield f"clipped: {clipped}"
        for node in _with(graph, PACKED):
            others = [u for u in node.users if u not in CLIPPED and op_name(u) != _NORM_OP]
            yield from (f"{user} reads {node}, which is not clipped" for user in others)


def _gated(step: StepGraph) -> Faults:
    flags = _with(step.update.graph, FINITE)
    if len(flags) > 1 or any(type_text(flag.meta["val"]) != "b8[]" for flag in flags):
        yield f"flags: {flags}"
    for name, node in results(step.update.graph).items() if flags else ():
        gated = op_name(node) == "where" and node.args[0] is flags[0]
        if step.slots[name].role in (Role.MASTER, Role.OPTIMIZER, Role.BUFFER) and not gated:
            yield f"{name} is written without the gate"


def _shared(step: StepGraph) -> Faults:
    if any(arena.ranks > 1 for arena in step.arenas):
        for node in step.update.graph.nodes:
            own = node in MEASURE or NORM.get(node) == "total"
            if own and node not in SHARED_NORM:
                yield f"{node} is of one slice"


def _adjusted(step: StepGraph) -> Faults:
    if TRACKER in step.slots:
        written = results(step.update.graph)
        yield from (name for name in (SCALE, TRACKER) if name not in written)
        if not _with(step.update.graph, FINITE):
            yield "no flag"


def _counted(step: StepGraph) -> Faults:
    written = results(step.update.graph)
    yield from (name for name in (TAKEN, SKIPPED) if name not in written)


def _reported(step: StepGraph) -> Faults:
    if APPLIED not in results(step.update.graph):
        yield APPLIED
    reads = {name for graph in step.graphs().values() for name in placeholders(graph)}
    yield from (name for name in reads if step.slots[name].role is Role.REPORT)


def _whole(step: StepGraph) -> Faults:
    done = {GATHERED[node] for node in _with(step.update.graph, GATHERED)}
    for arena in step.arenas:
        narrow = any(name in step.working for name in arena.parameters)
        if arena.ranks > 1 and narrow and arena.name not in done:
            yield arena.name


def _alive(step: StepGraph) -> Faults:
    for graph in step.graphs().values():
        for node in graph.nodes:
            batch = node.op == "placeholder" and step.slots[SLOT[node]].role is Role.BATCH
            if node.op != "output" and not node.users and not batch and not node.is_impure():
                yield str(node)


def _with(graph: fx.Graph, mark: Mark[Any]) -> list[fx.Node]:
    return [node for node in graph.nodes if node in mark]


INVARIANTS = (
    Invariant("", "", "a slot's dtype is one of its role", _dtypes),
    Invariant("", "", "the gradient graph reads and returns only roles of its own", _roles),
    Invariant("", "", "marks of the update are on nodes of the update", _marks_of_update),
    Invariant("", "", "backward starts from one BACKWARD_SEED, or from the loss scale", _seed),
    Invariant("", "", "each trained weight has a result grad.NAME", _gradient_slots),
    Invariant("", "reduce_in_backward", "forward reads nothing of BACKWARD", _forward_first),
    Invariant("", "pack_gradients", "the update reads a PACKED slot an arena", _unpacked),
    Invariant("hoist_weight_casts", "", "no cast of a master is left", _casts_of(Role.MASTER)),
    Invariant("hoist_weight_casts", "", "weights with a copy lie first", _working_first),
    Invariant("hoist_read_casts", "", "no cast of a read weight is left", _casts_of(Role.CONSTANT)),
    Invariant("pack_gradients", "", "each arena has one FP32 gradient, PACKED", _packed),
    Invariant("accumulate_gradients", "", "an update of sums reads no gradient", _accumulated),
    Invariant("reduce_packed", "", "a sharded arena's gradient is a slice", _reduced),
    Invariant("scale_loss", "", "what is PACKED is unscaled", _unscaled),
    Invariant("clip_gradients", "", "the optimizer reads what is CLIPPED, if any is", _clipped),
    Invariant("gate_update", "", "one FINITE flag, if any, selects each write of state", _gated),
    Invariant("share_norms", "", "norms of slices are SHARED_NORM", _shared),
    Invariant("adjust_scale", "", "a dynamic scale is written by the flag", _adjusted),
    Invariant("count_steps", "", "both counters are written", _counted),
    Invariant("report_outcome", "", "reports are written and never read", _reported),
    Invariant("gather_slices", "", "working copies of slices are GATHERED", _whole),
    Invariant("drop_dead", "", "every node is read, and every input but the batch", _alive),
)
"""All facts that passes of the step graph may rely on, in the order of the passes."""


def check_after(step: StepGraph, finished: Collection[str] = ()) -> None:
    """Check a step graph between passes.

    Args:
        step: the graph.
        finished: names of the passes that have run on the step graph.

    Raises:
        CompileError: graphs and slots do not fit.
        BrokenInvariant: a row of `INVARIANTS` is not true.
    """
    step.check()
    for row in INVARIANTS:
        holds = (not row.since or row.since in finished) and row.until not in finished
        if holds and (faults := list(row.faults(step))):
            raise BrokenInvariant(f"not true: {row.says}: {'; '.join(faults)}")
