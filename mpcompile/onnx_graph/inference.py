"""Infer the dtype and shape of every value of an ONNX graph.

The types that a file states for values inside its graph (``value_info``) may be stale. They count
only where nothing can be inferred, for example after an op of another domain.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from mpcompile.onnx_graph.bounded_inference import inferred

_KNOWN_BY_VALUE = 1024
"""Bytes up to which an initializer keeps its numbers, because shapes can depend on them."""


def infer_types(model: ir.Model) -> None:
    """Write into each value the dtype and shape that follow from the graph's inputs.

    Raises no errors: a value without an inferred type keeps the file's, which may be none.

    Args:
        model: a model without local functions and with at least one node.
    """
    skeleton = model.clone()
    _strip(skeleton.graph)
    for own, copied in zip(_values(model.graph), _values(skeleton.graph), strict=True):
        if own.producer() is not None and not copied.is_graph_output():
            copied.type = None
            copied.shape = None
    proto = inferred(skeleton)
    if proto is None:
        return
    found = ir.from_proto(proto)
    for own, other in _pairs(model.graph, found.graph):
        if other.type is not None and own.producer() is not None:
            if own.type != other.type:
                own.type = other.type
            if other.shape is not None:
                own.shape = other.shape
        elif own.producer() is None and own.type is None and other.type is not None:
            own.type, own.shape = other.type, other.shape


def _strip(graph: ir.Graph) -> None:
    """Turn large initializers of any graph into inputs, because their numbers are not needed."""
    named = {value.name for value in _values(graph)} | set(graph.initializers)
    for inner in (graph, *graph.subgraphs()):
        for name, value in list(inner.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= _KNOWN_BY_VALUE:
                continue
            del inner.initializers[name]
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            value.const_value = None
            if value in graph.inputs:
                continue
            if inner is not graph:
                value.name = f"{name}~{len(named)}"
                named.add(value.name)
            graph.inputs.append(value)


def _pairs(graph: ir.Graph, read_back: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield each value of a graph with its twin in a copy that was a file in between.

    A node of the copy may have fewer outputs: those without a name are not written at the end.
    """
    ours, theirs = ([each, *each.subgraphs()] for each in (graph, read_back))
    for inner, copied in zip(ours, theirs, strict=True):
        if inner is not graph:
            yield from zip(inner.inputs, copied.inputs, strict=True)
        for node, twin in zip(inner, copied, strict=True):
            yield from zip(node.outputs, twin.outputs, strict=False)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield inner graphs' inputs and nodes' outputs, in the same order for each copy."""
    for inner in (graph, *graph.subgraphs()):
        if inner is not graph:
            yield from inner.inputs
        for node in inner:
            yield from node.outputs
