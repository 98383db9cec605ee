"""A training step as one functional graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from mpcompile.program.marks import SLOTS
from mpcompile.step.graph import StepGraph, add_input, call, placeholders
from mpcompile.step.slots import Role, Slot
from mpcompile.torch_private.graphs import module_of

_INNER = (Role.GRADIENT, Role.PACKED, Role.UPDATED, Role.LOSS, Role.AUXILIARY, Role.REPORT)


def whole_step(step: StepGraph) -> fx.GraphModule:
    """Return a step's graphs as one; with accumulation, the last micro-batch and the update.

    Its inputs are the state slots (parameters as arenas), the hyper-parameters and the batch; its
    results are the loss and the next value of each state slot that changes.
    """
    graph = fx.Graph()
    lies = _pieces(step)
    outer: dict[str, fx.Node] = {}
    graphs = list(step.graphs().values())
    for part in graphs:
        for name, node in placeholders(part).items():
            owner = lies[name].memory if name in lies else name
            if owner not in outer and step.slots[owner].role not in _INNER:
                outer[owner] = add_input(graph, step.slots[owner], node)
    known = {name: _view(graph, step.slots[name], lies.get(name), outer) for name in
             placeholders(step.gradient.graph)}  # fmt: skip
    written: dict[str, fx.Node] = {}
    for part in graphs:
        copied = {node: known[name] if name in known else outer[name]
                  for name, node in placeholders(part).items()}  # fmt: skip
        passed = graph.graph_copy(part, copied)
        known = dict(zip(SLOTS[part.output_node()], passed, strict=True))  # type: ignore[arg-type]
        written |= known
    loss = written["loss"]
    state = {name: node for name, node in written.items() if step.slots[name].role not in _INNER}
    output = graph.output((loss, *state.values()))
    SLOTS[output] = ("loss", *state)
    graph.lint()
    return module_of(graph, step.gradient, step.update)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The memory of a slot: the slot that owns it, and the first element; None: all of it."""

    memory: str
    start: int | None


def _pieces(step: StepGraph) -> dict[str, _Piece]:
    """Return the memory of each trained weight and each working copy."""
    pieces: dict[str, _Piece] = {}
    for arena in step.arenas:
        masters = "whole" if f"{arena.name}.whole" in step.slots else "master"
        for suffix, memory in (("", masters), (".working", "working")):
            for name, start in zip(arena.parameters, arena.offsets, strict=False):
                piece = _Piece(f"{arena.name}.{memory}", start if arena.flat else None)
                pieces[f"{name}{suffix}"] = piece
    joined = {name: pieces[f"{first}.working"] for name, (first, *_) in step.joined.items()}
    return pieces | joined


def _view(graph: fx.Graph, slot: Slot, found: _Piece | None, outer: dict[str, fx.Node]) -> fx.Node:
    """Return a gradient graph's input as a view of its arena, or as it is."""
    if found is None:
        return outer[slot.name]
    whole = outer[found.memory]
    if found.start is None:
        return whole
    end = found.start + prod(slot.shape)
    piece = call(graph, torch.ops.aten.slice.Tensor, whole, 0, found.start, end)
    return call(graph, torch.ops.aten.view.default, piece, list(slot.shape))
