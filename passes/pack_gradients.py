"""Lay the gradients of an arena side by side, in its parameters' order, as one FP32 tensor."""

from __future__ import annotations

from itertools import groupby
from math import prod

import torch
from torch import fx

from mpcompile.passes.clean_casts import CAST
from mpcompile.step import Arena, Role, StepGraph, add_input, call, placeholders

_ATEN = torch.ops.aten


def pack_gradients(step: StepGraph) -> int:
    """Make each arena's packed gradient in the update graph; return the number of arenas.

    16-bit gradients are joined first and widened in one go. Gaps that align the parameters hold
    zeros.
    """
    graph = step.update.graph
    packed = [arena for arena in step.arenas if f"{arena.name}.grad" in placeholders(graph)]
    for arena in packed:
        old = placeholders(graph)[f"{arena.name}.grad"]
        inputs = []
        for name in arena.parameters:
            slot = step.slots[f"grad.{name}"]
            inputs.append(add_input(graph, slot, old))
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            whole = _join(graph, arena, inputs) if arena.flat else _widen(graph, inputs[0])
        if whole.op == "placeholder":  # an FP32 gradient that needs no packing
            with graph.inserting_before(first):
                whole = call(graph, _ATEN.alias.default, whole)
        whole.meta["packed"] = arena.name
        old.replace_all_uses_with(whole)
        graph.erase_node(old)
        assert step.slots.pop(f"{arena.name}.grad").role is Role.PACKED
    return len(packed)


def _join(graph: fx.Graph, arena: Arena, inputs: list[fx.Node]) -> fx.Node:
    gaps: dict[tuple[int, torch.dtype], fx.Node] = {}
    offsets = arena.offsets
    parts: list[tuple[torch.dtype, fx.Node]] = []
    for position, node in enumerate(inputs):
        value = node.meta["val"]
        parts.append((value.dtype, call(graph, _ATEN.reshape.default, node, [-1])))
        gap = offsets[position + 1] - offsets[position] - prod(arena.shapes[position])
        if gap:
            key = (gap, value.dtype)
            if key not in gaps:
                gaps[key] = call(graph, _ATEN.new_zeros.default, node, [gap])
            parts.append((value.dtype, gaps[key]))
    runs = [
        _widen(graph, _cat(graph, [node for _, node in run]))
        for _, run in groupby(parts, key=lambda part: part[0])
    ]
    return _cat(graph, runs)


def _cat(graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
    return nodes[0] if len(nodes) == 1 else call(graph, _ATEN.cat.default, nodes)


def _widen(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.meta["val"].dtype is torch.float32:
        return node
    return call(graph, CAST, node, dtype=torch.float32)
