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

from mpcompile.program.casts import CAST, is_cast, source_of, widens
from mpcompile.program.marks import SLOTS
from mpcompile.step.arena import Arena
from mpcompile.step.graph import StepGraph, add_inputs, placeholders, results, set_results
from mpcompile.step.slots import Role, Slot


def hoist_weight_casts(step: StepGraph) -> int:
    """Turn weight casts into working-copy slots; return how many weights got one.

    Runs before `pack_gradients`, which follows the order of the arenas that is chosen here.

    Example:
        >>> before_and_after(hoist_weight_casts, step_before("hoist_weight_casts"))
        gradient
        - _to_copy  f16[3,4]  _to_copy w dtype=f16
        + w_working  f16[3,4]  input w.working
        - t  f16[4,3]  t _to_copy
        + t  f16[4,3]  t w_working
        - return  grad.w = _to_copy_4
        + return  grad.w = t_3
        update
        + _to_copy_default  f16[32]  _to_copy add dtype=f16
        + return  arena0.working = _to_copy_default
    """
    graph = step.gradient.graph
    casts = {
        name: found
        for name, master in placeholders(graph).items()
        if step.slots[name].role is Role.MASTER
        and (found := [user for user in master.users if is_cast(user)])
    }
    if not casts:
        return 0
    slots = [
        Slot(f"{name}.working", Role.WORKING, step.slots[name].shape, found[0].meta["val"].dtype)
        for name, found in casts.items()
    ]
    step.slots |= {slot.name: slot for slot in slots}
    like = placeholders(graph)[next(iter(casts))]
    for name, copy in zip(casts, add_inputs(graph, slots, like), strict=True):
        for cast in casts[name]:
            cast.replace_all_uses_with(copy)
            graph.erase_node(cast)
    gradients = results(graph)
    for name in casts:
        _narrow_gradient(step, f"grad.{name}", gradients)
    set_results(graph, gradients)
    step.working |= set(casts)
    step.arenas = tuple(_working_first(arena, step.working) for arena in step.arenas)
    for arena in step.arenas:
        _write_working(step, arena)
    return len(casts)


def _narrow_gradient(step: StepGraph, name: str, gradients: dict[str, fx.Node]) -> None:
    """Return a gradient in 16 bits if a widening cast was its last op."""
    if widens(gradients[name]):
        gradients[name] = source = source_of(gradients[name])
        step.slots[name] = replace(step.slots[name], dtype=source.meta["val"].dtype)


def _working_first(arena: Arena, working: set[str]) -> Arena:
    """Reorder an arena so that the weights with a working copy are its beginning.

    The weights of an arena are of one kind, except those that the program itself casts.
    """
    order = sorted(range(len(arena.parameters)), key=lambda i: arena.parameters[i] not in working)
    return replace(
        arena,
        parameters=tuple(arena.parameters[i] for i in order),
        shapes=tuple(arena.shapes[i] for i in order),
    )


def _write_working(step: StepGraph, arena: Arena) -> None:
    """Let the update write the arena's working copies from the next master.

    In a sharded arena they cover this process's slice, until `passes.gather_slices` runs.
    """
    names = [name for name in arena.parameters if name in step.working]
    if not names:
        return
    graph = step.update.graph
    dtype = step.slots[f"{names[0]}.working"].dtype
    length = arena.offsets[len(names)] if arena.ranks == 1 else arena.shape[0]
    shape = (length,) if arena.flat else arena.shape
    slot = Slot(f"{arena.name}.working", Role.WORKING, shape, dtype)
    step.slots[slot.name] = slot
    output = graph.output_node()
    master: fx.Node = results(graph)[f"{arena.name}.master"]
    with graph.inserting_before(output):
        node = master
        if arena.flat and length < arena.shape[0]:
            node = graph.call_function(torch.ops.aten.slice.Tensor, (master, 0, 0, length))
            node.meta["val"] = master.meta["val"][:length]
        cast = graph.call_function(CAST, (node,), {"dtype": dtype})
        cast.meta["val"] = node.meta["val"].to(dtype)
    assert isinstance(output.args[0], tuple)
    output.args = ((*output.args[0], cast),)
    SLOTS[output] = (*SLOTS[output], slot.name)
