"""The graphs inside an ONNX graph: ids of nodes and values, and values that cross borders.

An id is the path of the nodes that hold a graph, then the name of a node or value in it:
``Loop_3/body/Add_1``. Names may be missing or not unique; ids are unique.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from mpcompile.onnx_graph.values import is_standard
from mpcompile.plan.nest import BRANCH_ROUNDS, UNKNOWN_ROUNDS, BorderKind, Inner, visited


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a value: as a node's input, or as an output of a graph.

    Attributes:
        reader: the node or the graph.
        index: which input of the node, or which output of the graph.
    """

    reader: ir.Node | ir.Graph
    index: int

    @property
    def value(self) -> ir.Value | None:
        """The value that is read; None for an optional input that is left out."""
        if isinstance(self.reader, ir.Node):
            return self.reader.inputs[self.index]
        return self.reader.outputs[self.index]

    def replace(self, value: ir.Value) -> None:
        """Read another value instead."""
        if isinstance(self.reader, ir.Node):
            self.reader.replace_input_with(self.index, value)
        else:
            self.reader.outputs[self.index] = value


@dataclass(frozen=True, slots=True)
class Border:
    """One value under all the names it has on both sides of an inner graph's border.

    Attributes:
        id: the calling node's id, the kind and a number: ``Loop_3/carry_0``.
        kind: the kind of value that crosses there.
        caller: the node that calls the inner graph.
        reads: the uses that it comes from.
        writes: the inner graphs' inputs and the caller's outputs that it becomes.
    """

    id: str
    kind: BorderKind
    caller: ir.Node
    reads: tuple[Use, ...]
    writes: tuple[ir.Value, ...]


@dataclass(frozen=True, slots=True)
class Nest:
    """A graph and the graphs inside it.

    Attributes:
        inners: the graphs, each after the graph that calls it.
        nodes: per node its id, which is unique among all graphs.
        values: per value its id.
        borders: the values that cross between graphs, per node that calls graphs.
    """

    inners: tuple[Inner[ir.Graph, ir.Node], ...]
    nodes: dict[ir.Node, str]
    values: dict[ir.Value, str]
    borders: dict[ir.Node, tuple[Border, ...]]

    def visited(self) -> Iterator[tuple[ir.Node, Inner[ir.Graph, ir.Node]]]:
        """Yield every node with its graph; the graphs that a node calls follow it."""
        return visited(self.inners, lambda graph: graph)


def nest_of(graph: ir.Graph) -> Nest:
    """Return a graph with the graphs inside it; nothing is changed.

    Args:
        graph: a model's own graph.
    """
    opset = graph.opset_imports.get("", 0)
    inners: list[Inner[ir.Graph, ir.Node]] = [Inner(graph, "", None, Fraction(1))]
    nodes: dict[ir.Node, str] = {}
    values: dict[ir.Value, str] = {}
    borders: dict[ir.Node, tuple[Border, ...]] = {}
    taken: set[str] = set()
    named: set[str] = set()
    for inner in inners:  # grows while the loop runs
        for value in (*inner.graph.inputs, *inner.graph.initializers.values()):
            values.setdefault(value, _unique(f"{inner.prefix}{value.name}", named))
        for node in inner.graph:
            # Named after its output, so that another order of nodes gives the same ids.
            first = next((value.name for value in node.outputs if value.name), "")
            name = node.name or f"{node.op_type}_{first}"
            nodes[node] = _unique(f"{inner.prefix}{name}", taken)
            for index, value in enumerate(node.outputs):
                label = value.name or f"{name}.{index}"
                values[value] = _unique(f"{inner.prefix}{label}", named)
            bodies = _graphs_of(node)
            for attribute, body in bodies.items():
                rounds = inner.rounds * _rounds(node)
                inners.append(Inner(body, f"{nodes[node]}/{attribute}/", node, rounds))
            if bodies:
                borders[node] = tuple(_borders(node, nodes[node], bodies, opset))
    return Nest(tuple(inners), nodes, values, borders)


def _unique(name: str, taken: set[str]) -> str:
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}~{count}"
    taken.add(found)
    return found


def _graphs_of(node: ir.Node) -> dict[str, ir.Graph]:
    found: dict[str, ir.Graph] = {}
    for name, attribute in node.attributes.items():
        if not isinstance(attribute, ir.Attr) or attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.GRAPH:
            found[name] = attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            found |= {f"{name}.{k}": graph for k, graph in enumerate(attribute.as_graphs())}
    return found


def _rounds(node: ir.Node) -> Fraction:
    if not is_standard(node):
        return Fraction(1)
    if node.op_type == "If":
        return BRANCH_ROUNDS
    if node.op_type == "Loop":
        limit = node.inputs[0]
        known = limit.const_value if limit is not None else None
        if known is not None and known.size == 1:
            return Fraction(min(max(int(known.numpy().reshape(-1)[0]), 1), 1 << 40))
        return UNKNOWN_ROUNDS
    if node.op_type == "Scan" and node.inputs:
        shape = node.inputs[-1].shape if node.inputs[-1] is not None else None
        if shape is not None and len(shape) and isinstance(shape[0], int):
            return Fraction(max(shape[0], 1))
    return UNKNOWN_ROUNDS


def _borders(node: ir.Node, id: str, bodies: dict[str, ir.Graph], opset: int) -> Iterator[Border]:
    def border(
        kind: BorderKind, number: int, reads: list[Use], writes: Sequence[ir.Value | None]
    ) -> Border:
        there = tuple(use for use in reads if use.value is not None)
        named = tuple(value for value in writes if value is not None)
        return Border(f"{id}/{kind.value}_{number}", kind, node, there, named)

    if is_standard(node) and node.op_type == "If" and len(bodies) == 2:
        for k, value in enumerate(node.outputs):
            reads = [Use(graph, k) for graph in bodies.values() if k < len(graph.outputs)]
            yield border(BorderKind.RESULT, k, reads, [value])
    elif is_standard(node) and node.op_type in ("Loop", "Scan") and len(bodies) == 1:
        (body,) = bodies.values()
        loop = node.op_type == "Loop"
        count = node.attributes.get("num_scan_inputs")
        slices = 0 if loop or count is None else int(count.as_int())
        first = 2 if loop else 0  # a trip count and a condition come before the state
        if not loop and opset < 9:
            first = 1  # the lengths of the sequences
        states = max(len(node.inputs) - first - slices, 0)
        before = 1 if loop else 0  # the body returns the condition first
        own = 2 if loop else 0  # and its inputs begin with the iteration and the condition
        for k in range(states):
            reads = [Use(node, first + k)]
            reads += [Use(body, before + k)] if before + k < len(body.outputs) else []
            writes = [*body.inputs[own + k : own + k + 1], *node.outputs[k : k + 1]]
            yield border(BorderKind.CARRY, k, reads, writes)
        for k in range(slices):
            given = body.inputs[own + states + k : own + states + k + 1]
            yield border(BorderKind.SLICE, k, [Use(node, first + states + k)], [*given])
        for k in range(states, len(node.outputs)):
            if before + k < len(body.outputs):
                yield border(
                    BorderKind.STACK, k - states, [Use(body, before + k)], [node.outputs[k]]
                )
    else:
        for k in range(len(node.inputs)):
            yield border(BorderKind.CROSSING, k, [Use(node, k)], [])
        number = len(node.inputs)
        for graph in bodies.values():
            for value in graph.inputs:
                yield border(BorderKind.CROSSING, number, [], [value])
                number += 1
            for k in range(len(graph.outputs)):
                yield border(BorderKind.CROSSING, number, [Use(graph, k)], [])
                number += 1
        for value in node.outputs:
            yield border(BorderKind.CROSSING, number, [], [value])
            number += 1
