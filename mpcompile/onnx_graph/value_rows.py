"""Describe an ONNX graph to the analysis of bounds: operands, lengths, dtypes, constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import onnx_ir as ir

from mpcompile.onnx_graph.nest import Nest
from mpcompile.onnx_graph.values import is_full, is_standard
from mpcompile.plan.bounds.bound import Bound, Operand, Step
from mpcompile.plan.bounds.walk import bounds_of
from mpcompile.precision import Precision

_LARGEST_CONSTANT = 1 << 20
"""Larger constants are weights; their numbers are not read."""
_INTEGERS = tuple(
    getattr(ir.DataType, name) for name in "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32".split()
)
_LIMITS: Mapping[ir.DataType, tuple[float, float]] = {
    ir.DataType.BOOL: (0.0, 1.0),
    **{
        dtype: (float(np.iinfo(dtype.numpy()).min), float(np.iinfo(dtype.numpy()).max))
        for dtype in _INTEGERS
    },
}
_FLOATING = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_VARIADIC = frozenset(("Concat", "Max", "Min"))
_SUMS = frozenset(("ReduceSum", "ReduceMean", "ArgMax", "ArgMin"))


def value_bounds(nest: Nest, precision: Precision) -> dict[str, Bound]:
    """Return the bounds of a graph's values by their ids.

    Args:
        nest: the model's graph, types inferred.
        precision: the 16-bit format that errors are about.
    """
    if precision is Precision.FP32:
        return {}
    return bounds_of(_steps(nest), precision, _indices(nest))


def _steps(nest: Nest) -> Iterator[Step]:
    ids = nest.values
    for value in nest.inners[0].graph.inputs:
        if not value.is_initializer():
            yield Step("unknown", (), ids[value], 0, *_dtype(value))
    for inner in nest.inners:
        for value in inner.graph.initializers.values():
            if not value.is_graph_input():
                held = _held(value.const_value)
                yield Step("weight", held or (), ids[value], 0, *_dtype(value))
    for node, _ in nest.visited():
        if node not in nest.borders:
            yield from _steps_of(node, ids)


def _steps_of(node: ir.Node, ids: Mapping[ir.Value, str]) -> Iterator[Step]:
    """Yield a row for each result of a node."""
    for index, value in enumerate(node.outputs):
        limits, full = _dtype(value)
        kind, operands = _call(node, index, ids)
        if limits is None and not full and value.dtype is not ir.DataType.DOUBLE:
            kind = "unknown"
        yield Step(kind, operands, ids[value], _length(node), limits, full)


def _call(
    node: ir.Node, index: int, ids: Mapping[ir.Value, str]
) -> tuple[str, tuple[Operand, ...]]:
    """Return the row for a result of a node, and what the row reads."""
    kind, first = node.op_type, node.inputs[0] if node.inputs else None
    given: tuple[Operand, ...] = tuple(None if v is None else ids.get(v) for v in node.inputs)
    if not is_standard(node) or (index and kind != "Split"):
        return "unknown", given
    if kind in _VARIADIC:
        return kind, (tuple(name for name in given if isinstance(name, str)),)
    if kind in ("Constant", "ConstantOfShape"):
        return _made(node)
    if kind in ("Cast", "CastLike"):
        return _cast(first, node.outputs[0]), given[:1]
    if kind == "Clip" and len(given) == 1:
        return kind, (*given, _number(node, "min"), _number(node, "max"))
    if kind == "Pad":
        return kind, (*given[:2], given[2] if len(given) > 2 and given[2] else 0.0)
    if kind == "Mod":
        return ("fmod" if _number(node, "fmod") else "remainder"), given
    if kind == "Div" and not is_full(first) and (first is None or first.dtype not in _FLOATING):
        return "floor_divide", given
    adds = node.attributes.get("reduction")
    if (adds is not None and adds.as_string() != "none") or _number(node, "exclusive"):
        return "unknown", given
    return kind, given


def _made(node: ir.Node) -> tuple[str, tuple[Operand, ...]]:
    """Return the row of a node that makes a constant."""
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.type is ir.AttributeType.TENSOR:
        held = _held(attribute.as_tensor())
        return ("held", held) if held else ("unknown", ())
    if node.op_type == "ConstantOfShape":
        return "zeros", ()
    for name in ("value_float", "value_int"):
        if name in node.attributes:
            return "full", (None, _number(node, name))
    return "unknown", ()


def _cast(source: ir.Value | None, result: ir.Value) -> str:
    before = source.dtype if source is not None else None
    if before not in _FLOATING and before not in _LIMITS:
        return "unknown"
    if result.dtype is ir.DataType.BOOL:
        return "Not"
    if result.dtype in _LIMITS:
        return "trunc" if before in _FLOATING else "cast"
    return "cast" if before in _LIMITS or is_full(result) else "cast_exactly"


def _number(node: ir.Node, name: str) -> float | None:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return None
    kinds = (ir.AttributeType.FLOAT, ir.AttributeType.INT)
    return float(attribute.value) if attribute.type in kinds else None


def _held(tensor: ir.TensorProtocol | None) -> tuple[float, float, float] | None:
    """Return the least and the largest number of a constant, and whether all are integers."""
    if tensor is None or not 0 < tensor.size <= _LARGEST_CONSTANT:
        return None
    if tensor.dtype not in _LIMITS and tensor.dtype not in _FLOATING:
        return None
    numbers = tensor.numpy()
    low, high = float(numbers.min()), float(numbers.max())
    whole = tensor.dtype in _LIMITS or bool((numbers == np.round(numbers)).all())
    return (low, high, float(whole)) if low <= high else None  # else it holds a NaN


def _indices(nest: Nest) -> dict[str, tuple[float, float]]:
    """Return the indices with which the lookups of the whole graph work."""
    found: dict[str, tuple[float, float]] = {}
    for node in nest.inners[0].graph:
        if node.op_type == "Gather" and is_standard(node) and len(node.inputs) == 2:
            table, index = node.inputs
            axis = int(_number(node, "axis") or 0)
            shape = table.shape if table is not None else None
            if index is None or shape is None or not -len(shape) <= axis < len(shape):
                continue
            rows = shape[axis]
            if isinstance(rows, int) and index in nest.values:
                found[nest.values[index]] = -float(rows), rows - 1.0
    return found


def _dtype(value: ir.Value) -> tuple[tuple[float, float] | None, bool]:
    """Return the limits of a value's dtype, and whether it is FP32."""
    known = isinstance(value.type, ir.TensorType)
    return (_LIMITS.get(value.dtype) if known and value.dtype else None), is_full(value)


def _length(node: ir.Node) -> int:
    """Return how many numbers each number of the result is made of, or can choose among."""
    value = node.inputs[0] if node.inputs else None
    if value is None or node.op_type not in (*_SUMS, "CumSum"):
        return 0
    before, after = _sizes(value), _sizes(node.outputs[0])
    if before is None or after is None or not all((*before, *after)):
        return 0
    if node.op_type == "CumSum":
        return max(before, default=1)
    return prod(before) // prod(after)


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(size for size in value.shape if isinstance(size, int))
