"""Lay out the working copies of weights as the graph reads them, so that reading is a view.

A ``cat`` of working copies would copy them in every step. If the weights can be side by side in
their arena without a gap, the joined tensor is a view of the arena, and no step makes a copy. A
working copy with zeros behind it is a view too, if the arena has a gap there that stays zero.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import fx

from mpcompile.program.marks import SLOT
from mpcompile.step.arena import Arena
from mpcompile.step.graph import StepGraph, add_input
from mpcompile.step.slots import Role, Slot
from mpcompile.torch_private.ops import op_name

_ATEN = torch.ops.aten


def lay_out_copies(step: StepGraph) -> int:
    """Replace joined working copies by views of the arena; return how many there are.

    Only copies joined along their first dimension are replaced, and a weight must have the same
    neighbours everywhere. Runs after `hoist_weight_casts`, which makes the copies, and before
    `pack_gradients`, which follows the order of the arenas.

    Example:
        >>> step = step_before("lay_out_copies")
        >>> pad(step, "w", rows=5)
        >>> before_and_after(lay_out_copies, step)
        gradient
        + w_padded  f16[8,4]  input w.padded
        - cat_default  f16[8,4]  cat [w_working,new_zeros_default]
        - neg_default  f16[8,4]  neg cat_default
        + neg_default  f16[8,4]  neg w_padded
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
    """Return the weights whose working copies are joined if they can be side by side, or ()."""
    pieces, *dims = cat.args
    assert isinstance(pieces, list | tuple)
    nodes = [piece for piece in pieces if isinstance(piece, fx.Node)]
    zeros = prod(nodes.pop().meta["val"].shape) if op_name(nodes[-1]) == "new_zeros" else 0
    slots = [step.slots.get(SLOT.get(node, "")) for node in nodes]
    names = tuple(
        slot.name.removesuffix(".working") for slot in slots if slot and slot.role is Role.WORKING
    )
    if not names or len(names) < len(slots) or len({*names}) < len(names) or dims not in ([], [0]):
        return ()
    arena = step.arena_of(names[0])
    if not arena.flat or not {*names} <= {*arena.parameters}:
        return ()
    gaps = arena.gaps()
    *between, behind = (gaps[name] for name in names)
    fits = not any(between) and zeros <= (behind if arena.zeros else 0)
    return names if fits else ()


def _slot(names: tuple[str, ...], cat: fx.Node) -> Slot:
    value = cat.meta["val"]
    name = f"{names[0]}.{'joined' if len(names) > 1 else 'padded'}"
    return Slot(name, Role.WORKING, tuple(value.shape), value.dtype)


def _reorder(arena: Arena, runs: list[tuple[str, ...]]) -> Arena:
    """Let the weights of each run follow its first one; all of them have a working copy."""
    run_of = {name: run for run in runs for name in run}
    order = dict.fromkeys(
        name for first in arena.parameters for name in run_of.get(first, (first,))
    )
    shapes = dict(zip(arena.parameters, arena.shapes, strict=True))
    return replace(arena, parameters=tuple(order), shapes=tuple(shapes[name] for name in order))
