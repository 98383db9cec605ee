"""What dtype and shape every value of an ONNX graph has.

What a file says about values inside its graph (``value_info``) may be stale; it counts only where
nothing can be inferred, as behind an op of another domain.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from mpcompile.onnx_graph.bounded_inference import inferred

_KNOWN_BY_VALUE = 1024
"""Bytes up to which an initializer is given with its numbers: shapes depend on such."""


def infer_types(model: ir.Model) -> None:
    """Write into each value the dtype and shape that follow from the graph's inputs.

    Raises nothing: a value of which nothing is known keeps what the file says, perhaps nothing.

    Args:
        model: a model without local functions, at least one node.
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
    for own, other in zip(_values(model.graph), _values(found.graph), strict=True):
        if other.type is not None and own.producer() is not None:
            if own.type != other.type:
                own.type = other.type
            if other.shape is not None:
                own.shape = other.shape
        elif own.producer() is None and own.type is None and other.type is not None:
            own.type, own.shape = other.type, other.shape


def _strip(graph: ir.Graph) -> None:
    """Make inputs of all large initializers, wherever they stand: their numbers are not needed."""
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


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield what inner graphs are given and what nodes make, in an order that copies share."""
    for inner in (graph, *graph.subgraphs()):
        if inner is not graph:
            yield from inner.inputs
        for node in inner:
            yield from node.outputs
