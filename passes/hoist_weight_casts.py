"""Master weights: lift each weight's cast out of the step (paper 3.1).

The cast of a trained weight moves across the step's border: the update writes the 16-bit working
copy, the next gradient graph reads it. No weight is cast in forward or backward. The gradient of
such a weight leaves backward in 16 bits and is widened in the update. A weight that only FP32 ops
read keeps no 16-bit copy; a tied weight has one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from mpcompile.passes.clean_casts import CAST, is_cast, source_of, widens
from mpcompile.step import Arena, Role, Slot, StepGraph, add_input, placeholders, results


def hoist_weight_casts(step: StepGraph) -> int:
    """Turn weight casts into working-copy slots; return how many weights got one.

    Runs before `pack_gradients`, which lays out the arenas by what is found here.
    """
    graph = step.gradient.graph
    hoisted: set[str] = set()
    gradients = results(graph)
    for name, master in placeholders(graph).items():
        if step.slots[name].role is not Role.MASTER:
            continue
        casts = [user for user in master.users if is_cast(user)]
        if not casts:
            continue
        hoisted.add(name)
        working = Slot(
            f"{name}.working", Role.WORKING, step.slots[name].shape, casts[0].meta["val"].dtype
        )
        step.slots[working.name] = working
        copy = add_input(graph, working, master)
        for cast in casts:
            cast.replace_all_uses_with(copy)
            graph.erase_node(cast)
        _narrow_gradient(step, name, gradients[f"grad.{name}"])
    if hoisted:
        step.working |= hoisted
        step.arenas = tuple(_working_first(arena, step.working) for arena in step.arenas)
        for arena in step.arenas:
            _write_working(step, arena)
    return len(hoisted)


def _narrow_gradient(step: StepGraph, name: str, last: fx.Node) -> None:
    """Let the gradient leave in 16 bits if widening was the last thing done to it."""
    if widens(last):
        slot, source = step.slots[f"grad.{name}"], source_of(last)
        last.graph.output_node().replace_input_with(last, source)
        step.slots[slot.name] = replace(slot, dtype=source.meta["val"].dtype)


def _working_first(arena: Arena, working: set[str]) -> Arena:
    """Reorder an arena so that the weights with a working copy are its beginning."""
    order = sorted(range(len(arena.parameters)), key=lambda i: arena.parameters[i] not in working)
    return replace(
        arena,
        parameters=tuple(arena.parameters[i] for i in order),
        shapes=tuple(arena.shapes[i] for i in order),
    )


def _write_working(step: StepGraph, arena: Arena) -> None:
    """Let the update write the arena's working copies from the next master."""
    names = [name for name in arena.parameters if name in step.working]
    if not names:
        return
    graph = step.update.graph
    dtype = step.slots[f"{names[0]}.working"].dtype
    length = arena.offsets[len(names)]
    shape = (length,) if arena.flat else arena.shape
    slot = Slot(f"{arena.name}.working", Role.WORKING, shape, dtype)
    step.slots[slot.name] = slot
    output = graph.output_node()
    master: fx.Node = results(graph)[f"{arena.name}.master"]
    with graph.inserting_before(output):
        node = master
        if arena.flat and length < arena.offsets[-1]:
            node = graph.call_function(torch.ops.aten.slice.Tensor, (master, 0, 0, length))
            node.meta["val"] = master.meta["val"][:length]
        cast = graph.call_function(CAST, (node,), {"dtype": dtype})
        cast.meta["val"] = node.meta["val"].to(dtype)
    assert isinstance(output.args[0], tuple)
    output.args = ((*output.args[0], cast),)
    output.meta["slots"] = (*output.meta["slots"], slot.name)
