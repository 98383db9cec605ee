"""Lay the working copies of weights out as the graph reads them, so that reading is a view.

A ``cat`` of working copies would be made anew in every step. Where the weights can lie side by side
in their arena without a gap, what is joined is a view of the arena, and no step makes a copy.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import fx

from mpcompile.step import ALIGNMENT, Arena, Role, Slot, StepGraph, add_input

_ATEN = torch.ops.aten


def lay_out_copies(step: StepGraph) -> int:
    """Replace joined working copies by views of the arena; return how many there are.

    Only what is joined along its first dimension is, and a weight only with the same neighbours
    everywhere. Runs after `hoist_weight_casts`, which makes the copies, and before
    `pack_gradients`, which follows the order of the arenas.
    """
    graph = step.gradient.graph
    found: dict[tuple[str, ...], fx.Node] = {}
    for cat in graph.find_nodes(op="call_function", target=_ATEN.cat.default):
        names = _neighbours(step, cat)
        if names in found:
            cat.replace_all_uses_with(found[names])
            graph.erase_node(cat)
        elif names and not any(set(names) & set(other) for other in step.joined.values()):
            slot = _slot(names, cat)
            step.slots[slot.name], step.joined[slot.name] = slot, names
            found[names] = add_input(graph, slot, cat)
            cat.replace_all_uses_with(found[names])
            graph.erase_node(cat)
    if found:
        step.arenas = tuple(_reorder(arena, list(found)) for arena in step.arenas)
    return len(found)


def _neighbours(step: StepGraph, cat: fx.Node) -> tuple[str, ...]:
    """Return the weights whose working copies are joined if they can lie side by side, or ()."""
    pieces, *dims = cat.args
    assert isinstance(pieces, list | tuple)
    slots = [step.slots.get(p.meta.get("slot", "")) for p in pieces if isinstance(p, fx.Node)]
    names = tuple(
        slot.name.removesuffix(".working") for slot in slots if slot and slot.role is Role.WORKING
    )
    if len(names) < len(pieces) or len(set(names)) < len(names) or dims not in ([], [0]):
        return ()
    arena = step.arena_of(names[0])
    aligned = all(slot and prod(slot.shape) % ALIGNMENT == 0 for slot in slots)
    return names if aligned and arena.flat and {*names} <= {*arena.parameters} else ()


def _slot(names: tuple[str, ...], cat: fx.Node) -> Slot:
    value = cat.meta["val"]
    return Slot(f"{names[0]}.joined", Role.WORKING, tuple(value.shape), value.dtype)


def _reorder(arena: Arena, runs: list[tuple[str, ...]]) -> Arena:
    """Let the weights of each run follow its first one; all of them have a working copy."""
    run_of = {name: run for run in runs for name in run}
    order = dict.fromkeys(
        name for first in arena.parameters for name in run_of.get(first, (first,))
    )
    shapes = dict(zip(arena.parameters, arena.shapes, strict=True))
    return replace(arena, parameters=tuple(order), shapes=tuple(shapes[name] for name in order))
