"""The memory that a graph needs: which tensors are alive at each node."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.program.marks import BACKWARD
from mpcompile.program.node_tensors import count_of
from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import STATE, Role
from mpcompile.torch_private.ops import is_view


@dataclass(frozen=True, slots=True)
class Peak:
    """The moment of a graph at which most bytes are alive.

    Attributes:
        bytes: bytes of all tensors that the graph makes; its inputs do not count.
        node: the node that is computed at this moment.
    """

    bytes: int
    node: str


def tensor_bytes(value: object) -> int:
    """Return the bytes of a tensor's elements; 0 for anything else."""
    return count_of(value) * value.element_size() if isinstance(value, torch.Tensor) else 0


def peak(graph: fx.Graph) -> Peak:
    """Return the peak over a graph run in node order, each tensor freed after its last use.

    Views hold no memory but keep their base alive.
    """
    best = Peak(0, "")
    for node, alive in alive_bytes(graph).items():
        if alive > best.bytes:
            best = Peak(alive, node.name)
    return best


def alive_bytes(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return per node, in order, the bytes of tensors alive while it runs; see `peak`."""
    owner = storages(graph)
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for item in (node, *node.all_input_nodes):
            last[owner[item]] = node
    freed: dict[fx.Node, list[fx.Node]] = {}
    for base, node in last.items():
        freed.setdefault(node, []).append(base)
    found: dict[fx.Node, int] = {}
    alive = 0
    for node in graph.nodes:
        if owner[node] is node and node.op == "call_function":
            alive += tensor_bytes(node.meta.get("val"))
        found[node] = alive
        for base in freed.get(node, ()):
            if base.op == "call_function":
                alive -= tensor_bytes(base.meta.get("val"))
    return found


def saved_bytes(graph: fx.Graph) -> int:
    """Return the bytes that forward makes and backward reads: the tensors saved for backward."""
    return sum(tensor_bytes(node.meta.get("val")) for node in saved_tensors(graph))


def saved_tensors(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes of forward whose memory backward reads."""
    bases = storages(graph)
    saved: set[fx.Node] = set()
    for node in graph.nodes:
        if node in BACKWARD:
            saved |= {
                bases[item]
                for item in node.all_input_nodes
                if bases[item].op == "call_function" and bases[item] not in BACKWARD
            }
    return saved


def result_bytes(graph: fx.Graph, first: int = 0) -> int:
    """Return the bytes that a graph makes and returns, each memory once.

    Args:
        graph: its inputs do not count.
        first: index of the first result that counts.
    """
    bases = storages(graph)
    results = graph.output_node().args[0]
    assert isinstance(results, list | tuple)
    made = {bases[node] for node in results[first:] if isinstance(node, fx.Node)}
    return sum(tensor_bytes(node.meta.get("val")) for node in made if node.op == "call_function")


def storages(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return for each node the node whose memory holds its result.

    The parts of a split are views of its input; the items of other ops have their own memory.
    """
    base: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        base[node] = node
        if node.op == "call_function" and node.all_input_nodes:
            whole = node.all_input_nodes[0]
            part = node.target is operator.getitem and isinstance(whole.meta["val"], list | tuple)
            if is_view(node) or (part and is_view(whole)):
                base[node] = base[whole]
    return base


def state_bytes(step: StepGraph) -> int:
    """Return the bytes kept from step to step: masters, 16-bit copies, optimizer, buffers."""
    views = {name for arena in step.arenas for name in arena.parameters}
    views |= {f"{name}.working" for name in views} | set(step.joined)
    return sum(
        tensor_bytes(slot.empty())
        for slot in step.slots.values()
        if slot.role in (*STATE, Role.CONSTANT, Role.SHARED) and slot.name not in views
    )
