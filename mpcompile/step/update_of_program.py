"""The optimizer's update for one program: the weights it trains, and their storage."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture
from mpcompile.program.capture import Forward, InputKind
from mpcompile.program.casts import is_cast
from mpcompile.program.derivatives.own_backward import OwnBackward
from mpcompile.program.workload import Workload
from mpcompile.step.arena import ArenaPosition
from mpcompile.step.graph import StepGraph, add_inputs, results, set_results
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.optimizer_start import progress_of
from mpcompile.step.slots import Role, Slot
from mpcompile.step.trained import trained_parameters
from mpcompile.step.update import Update, trace_update


def update_of(
    workload: Workload,
    optimizer: torch.optim.Optimizer,
    forward: Forward,
    loop: Loop = PLAIN,
    without: Collection[str] = (),
) -> tuple[list[str], Update]:
    """Trace the optimizer's step for a forward graph that has its casts.

    Args:
        workload: the program.
        optimizer: its optimizer.
        forward: its graph.
        loop: what happens between backward and the optimizer.
        without: parameters that are not trained now; see `trained_parameters`.

    Returns:
        The names of the trained parameters, and the update.
    """
    named = {id(i.tensor): i.name for i in forward.inputs if i.kind is InputKind.PARAMETER}
    groups = trained_parameters(optimizer, named, workload.origin, without)
    shapes = {item.name: tuple(item.value.shape) for item in forward.inputs}
    device = next(iter(workload.model.parameters())).device
    parallel = loop.parallel
    ranks = parallel.ranks if parallel is not None and parallel.shard else 1
    cast = weights_cast(forward, alone=ranks > 1)
    tensors = {item.name: item.tensor for item in forward.inputs}
    trained = [name for group in groups for name in group]
    progress = progress_of(optimizer, {name: tensors[name] for name in trained})
    update = trace_update(optimizer, groups, cast, shapes, device, workload.origin, ranks, progress)
    if ranks > 1 and not all(arena.flat for arena in update.arenas):
        raise BadInput(
            f"{type(optimizer).__name__} reads whole weights, so its state cannot be "
            "cut into slices",
            workload.origin,
            "leave out shard=True, or use an optimizer that works element by element",
        )
    written = sorted({*trained} & {*forward.written})
    if written and (parallel is not None or loop.accumulate > 1):
        raise BadInput(
            f"the program writes to the weight {written[0]}, which it trains",
            workload.origin,
            "write to it after the step, or train on one process without accumulation",
        )
    for node in forward.module.graph.nodes:
        own = node.target
        if isinstance(own, OwnBackward) and own.complete and (parallel or loop.accumulate > 1):
            raise CannotCapture(
                f"the hook {own.name} waits for the complete gradient of a weight, which several "
                "calls or processes add up",
                own.where,
                "use register_hook, or train on one process without accumulation",
            )
    return trained, update


def weights_cast(forward: Forward, *, alone: bool = False) -> set[str]:
    """Return the names of the parameters that will have a working copy if they are trained.

    With ``alone``, only those that no op reads in FP32: their masters can be in slices. A weight
    without dimensions is left out, because `mpcompile.step.slices.is_absent` cannot recognise it.
    """
    every = all if alone else any
    nodes = {node.name: node for node in forward.module.graph.find_nodes(op="placeholder")}
    return {
        item.name
        for item in forward.inputs
        if every(map(is_cast, nodes[item.node].users)) and not (alone and item.tensor.dim() == 0)
    }


def arena_positions(forward: Forward, update: Update) -> dict[str, ArenaPosition]:
    """Return the position of each trained weight in a flat arena, by placeholder."""
    nodes = {item.name: item.node for item in forward.inputs}
    return {
        nodes[name]: ArenaPosition(arena.name, gap, arena.zeros)
        for arena in update.arenas
        if arena.flat
        for name, gap in arena.gaps().items()
    }


def join(gradient: fx.GraphModule, slots: dict[str, Slot], update: Update) -> StepGraph:
    """Put gradient graph and update graph together; updated buffers become results."""
    step = StepGraph(
        gradient,
        update.module,
        {**slots, **update.slots},
        update.arenas,
        options=update.options,
        guards=update.guards,
    )
    graph = update.module.graph
    values = results(graph)
    like = next(iter(graph.find_nodes(op="placeholder")))
    updated = [
        slot
        for slot in slots.values()
        # The pass `store_written` puts trained weights into their arenas.
        if slot.role is Role.UPDATED and not _is_trained(slot, slots)
    ]
    for slot, node in zip(updated, add_inputs(graph, updated, like), strict=True):
        values[slot.name.removeprefix("next.")] = node
    set_results(graph, values)
    return step


def _is_trained(slot: Slot, slots: dict[str, Slot]) -> bool:
    return slots[slot.name.removeprefix("next.")].role is Role.MASTER
