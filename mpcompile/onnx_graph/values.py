"""Kinds of values of an ONNX graph: FP32 tensors, constants, values of unknown type."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

ASSUMED = 16
"""The assumed size of a dimension that the file leaves open."""


def is_standard(node: ir.Node) -> bool:
    """Return whether a node is an op of ONNX itself."""
    return node.domain in ("", "ai.onnx")


def is_full(value: ir.Value | None) -> bool:
    """Return whether a value is an FP32 tensor, the only kind that a plan may change."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.type.dtype is ir.DataType.FLOAT
    )


def is_known(value: ir.Value | None) -> bool:
    """Return whether a value is left out, or its type is known."""
    return value is None or is_left_out(value) or value.type is not None


def is_left_out(value: ir.Value) -> bool:
    """Return whether a node does not make this output of its: it has no name in the file."""
    return value.name == ""


def elements_of(value: ir.Value) -> int:
    """Return how many numbers a value holds; an open dimension counts as `ASSUMED`."""
    if value.const_value is not None:
        return value.const_value.size
    if value.shape is None:
        return ASSUMED * ASSUMED
    return prod(size if isinstance(size, int) else ASSUMED for size in value.shape)


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of a constant value, a weight or the output of a Constant; else None.

    An initializer that is also an input of its graph is only a default.
    """
    if value is None or not is_full(value):
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or not is_standard(node):
        return None
    for name, attribute in node.attributes.items():
        if isinstance(attribute, ir.Attr) and not attribute.is_ref():
            if name == "value":
                return attribute.as_tensor()
            if name == "value_float":
                return ir.tensor(np.array(attribute.as_float(), np.float32))
            if name == "value_floats":
                return ir.tensor(np.array(attribute.as_floats(), np.float32))
    return None


def set_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Give a constant other numbers, perhaps of another dtype."""
    value.type = ir.TensorType(tensor.dtype)
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes.add(ir.AttrTensor("value", tensor))
        value.const_value = None
