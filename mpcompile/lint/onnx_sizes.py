"""Facts for the rules from an ONNX op's shapes: lengths of sums and Tensor-Core sizes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from mpcompile.lint.program import Size
from mpcompile.onnx_graph.values import ASSUMED

_REDUCES = frozenset(("sum", "mean", "vector norm"))
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, slots=True)
class OnnxLengths:
    """The facts in an op's shapes; see `mpcompile.lint.program.Node`."""

    length: int = 0
    flops: int = 0
    sizes: tuple[Size, ...] = ()


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Return a value's shape; an open dimension is `ASSUMED`, an unknown shape is empty."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else ASSUMED for size in value.shape)


def lengths_of(node: ir.Node, row: str) -> OnnxLengths:
    """Return the facts in a node's shapes.

    Args:
        node: a node with inferred types.
        row: its row of the op table.
    """
    shapes = [shape_of(value) for value in node.inputs]
    result = shape_of(node.outputs[0]) if node.outputs else ()
    if node.op_type == "MatMul" and all(len(shape) > 1 for shape in shapes):
        return _product(node, shapes[0], shapes[1], result)
    if node.op_type == "Gemm" and all(len(shape) == 2 for shape in shapes[:2]):
        left, right = (
            shape[::-1] if _number(node, name) else shape
            for shape, name in zip(shapes[:2], ("transA", "transB"), strict=True)
        )
        return _product(node, left, right, result)
    if row == "conv" and len(shapes) > 1 and len(shapes[1]) > 2 and shapes[0]:
        return _convolution(node, shapes[0], shapes[1], result)
    if node.op_type in _GATES and len(shapes) > 2 and all(len(s) == 3 for s in shapes[:3]):
        return _recurrent(shapes, _GATES[node.op_type])
    if row in _REDUCES and shapes and shapes[0] and node.op_type.startswith("Reduce"):
        return OnnxLengths(prod(shapes[0]) // max(prod(result), 1))
    return OnnxLengths()


def _product(
    node: ir.Node, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]
) -> OnnxLengths:
    weight = node.inputs[1] is not None and node.inputs[1].is_initializer()
    names = ("inputs", "outputs") if weight else ("columns of the left factor", "columns")
    sizes = tuple(
        Size(name, int(size))
        for name, size, value, axis in (
            (names[0], left[-1], node.inputs[0], -1),
            (names[1], right[-1], node.outputs[0], -1),
        )
        if _is_known(value, axis)
    )
    return OnnxLengths(left[-1], 2 * prod(result) * left[-1], sizes)


def _convolution(
    node: ir.Node, image: tuple[int, ...], weight: tuple[int, ...], result: tuple[int, ...]
) -> OnnxLengths:
    swapped = node.op_type == "ConvTranspose"
    flops = 2 * prod(image if swapped else result) * prod(weight[1:])
    if _number(node, "group", 1) != 1:
        return OnnxLengths(0, flops)
    ends = weight[:2] if swapped else (weight[1], weight[0])
    return OnnxLengths(
        0, flops, (Size("input channels", ends[0]), Size("output channels", ends[1]))
    )


def _recurrent(shapes: list[tuple[int, ...]], gates: int) -> OnnxLengths:
    sequence, inputs, cells = shapes[:3]
    flops = 2 * sequence[0] * sequence[1] * (prod(inputs) + prod(cells))
    return OnnxLengths(0, flops, (Size("inputs", inputs[2]), Size("cells", inputs[1] // gates)))


def _is_known(value: ir.Value | None, axis: int) -> bool:
    return value is not None and value.shape is not None and isinstance(value.shape[axis], int)


def _number(node: ir.Node, name: str, default: int = 0) -> int:
    found = node.attributes.get(name)
    return int(found.as_int()) if isinstance(found, ir.Attr) and not found.is_ref() else default
