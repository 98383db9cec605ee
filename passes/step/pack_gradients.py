"""Lay the gradients of an arena side by side, in its parameters' order, as one FP32 tensor."""

from __future__ import annotations

from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import fx

from mpcompile.program.casts import CAST
from mpcompile.program.marks import PACKED
from mpcompile.step.arena import Arena
from mpcompile.step.graph import StepGraph, add_inputs, call, placeholders
from mpcompile.step.slots import Role
from mpcompile.torch_private.tensors import fake_like

_ATEN = torch.ops.aten


def pack_gradients(step: StepGraph) -> int:
    """Make each arena's packed gradient in the update graph; return the number of arenas.

    16-bit gradients are joined first and then widened together. Gaps that align the parameters hold
    zeros.

    Example:
        >>> before_and_after(pack_gradients, step_before("pack_gradients"))
        update
        - arena0_grad  f32[32]  input arena0.grad
        + grad_w  f16[3,4]  input grad.w
        + reshape_default  f16[12]  reshape grad_w [-1]
        + new_zeros_default  f16[20]  new_zeros grad_w [20]
        + cat_default  f16[32]  cat [reshape_default,new_zeros_default]
        + _to_copy_default_1  f32[32]  _to_copy cat_default dtype=f32
        - add  f32[32]  add arena0_master arena0_grad alpha=neg
        + add  f32[32]  add arena0_master _to_copy_default_1 alpha=neg
    """
    graph = step.update.graph
    packed = [arena for arena in step.arenas if f"{arena.name}.grad" in placeholders(graph)]
    for arena in packed:
        old = placeholders(graph)[f"{arena.name}.grad"]
        inputs = add_inputs(graph, [step.slots[f"grad.{name}"] for name in arena.parameters], old)
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            whole = _join(graph, arena, inputs) if arena.flat else _widen(graph, inputs[0])
        if whole.op == "placeholder":  # an FP32 gradient that needs no packing
            with graph.inserting_before(first):
                whole = call(graph, _ATEN.alias.default, whole)
        PACKED[whole] = arena.name
        old.replace_all_uses_with(whole)
        graph.erase_node(old)
        assert step.slots.pop(f"{arena.name}.grad").role is Role.PACKED
    return len(packed)


def _join(graph: fx.Graph, arena: Arena, inputs: list[fx.Node]) -> fx.Node:
    gaps: dict[tuple[int, torch.dtype], fx.Node] = {}
    offsets = arena.offsets
    parts: list[tuple[torch.dtype, fx.Node]] = []
    for position, node in enumerate(inputs):
        dtype = node.meta["val"].dtype
        length = prod(arena.shapes[position])
        parts.append((dtype, _row(graph, _ATEN.reshape.default, node, -1, length)))
        gap = offsets[position + 1] - offsets[position] - length
        if gap:
            if (gap, dtype) not in gaps:
                gaps[gap, dtype] = _row(graph, _ATEN.new_zeros.default, node, gap, gap)
            parts.append((dtype, gaps[gap, dtype]))
    runs = [
        _widen(graph, _cat(graph, [node for _, node in run]))
        for _, run in groupby(parts, key=lambda part: part[0])
    ]
    return _cat(graph, runs)


def _row(graph: fx.Graph, target: Any, node: fx.Node, size: int, length: int) -> fx.Node:
    """Call an op that takes ``[size]`` and makes one dimension of a known length."""
    row = graph.call_function(target, (node, [size]))
    like = node.meta["val"]
    row.meta["val"] = fake_like(like.fake_mode, (length,), like.dtype, like.device)
    return row


def _cat(graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
    return nodes[0] if len(nodes) == 1 else call(graph, _ATEN.cat.default, nodes)


def _widen(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.meta["val"].dtype is torch.float32:
        return node
    return call(graph, CAST, node, dtype=torch.float32)
