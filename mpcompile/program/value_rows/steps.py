"""Describe a torch graph to the analysis of bounds: operands, lengths, dtypes, constants."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from mpcompile.plan.bounds.bound import Bound, Operand, Step
from mpcompile.plan.bounds.walk import bounds_of
from mpcompile.plan.dataflow import Fixed
from mpcompile.precision import Precision
from mpcompile.program.control_flow import Nest
from mpcompile.torch_private.ops import in_order, op_name

_LIMITS: Mapping[torch.dtype, tuple[float, float]] = {
    torch.bool: (0.0, 1.0),
    **{
        dtype: (float(torch.iinfo(dtype).min), float(torch.iinfo(dtype).max))
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    },
}
_FLOATING = frozenset((torch.float32, torch.float64))
_CASTS = frozenset(("to", "type_as", "_to_copy"))
_SUMS = frozenset(("sum", "cumsum", "mean", "argmax", "argmin", "argsort"))
_RANGES, _ENDS = frozenset(("arange", "range")), frozenset(("start", "end", "step"))
_NORMS = frozenset(("layer_norm", "rms_norm"))
_SPLITS = frozenset(
    "split split_with_sizes chunk tensor_split unbind broadcast_tensors meshgrid".split()
)


def tensor_bounds(
    nest: Nest,
    fixed: Mapping[str, Fixed],
    constants: Mapping[str, torch.Tensor],
    precision: Precision,
) -> dict[str, Bound]:
    """Return the bounds of a graph's tensors by the ids of their nodes.

    Args:
        nest: the graph, with ``meta["val"]`` on its nodes.
        fixed: placeholder name to its kind.
        constants: the buffers that forward never writes, by placeholder.
        precision: the 16-bit format that errors are about.
    """
    if precision is Precision.FP32:
        return {}
    return bounds_of(_steps(nest, fixed, constants), precision, _indices(nest))


def _steps(
    nest: Nest, fixed: Mapping[str, Fixed], constants: Mapping[str, torch.Tensor]
) -> Iterator[Step]:
    for node, inner in nest.visited():
        if node.op == "call_function":
            if node not in nest.borders:
                yield _step(node, nest.nodes)
        elif node.op == "placeholder" and inner.caller is None:
            yield _source(node, fixed.get(node.name), constants.get(node.name))


def _source(node: fx.Node, kind: Fixed | None, value: torch.Tensor | None) -> Step:
    limits, full = _dtype(node)
    if kind is Fixed.PARAMETER:
        return Step("weight", (), node.name, limits=limits, full=full)
    held = _held(value) if value is not None else None
    if held is None:
        return Step("unknown", (), node.name, limits=limits, full=full)
    return Step("held", held, node.name, limits=limits, full=full)


def _held(value: torch.Tensor) -> tuple[float, float, float] | None:
    """Return the least and the largest number of a constant, and whether all are integers."""
    known = value.dtype in _LIMITS or value.dtype in _FLOATING
    if not known or value.device.type == "meta" or not value.numel() or value.is_sparse:
        return None
    value = value.detach()
    if value.dtype is torch.bool:
        value = value.to(torch.uint8)
    low, high = value.aminmax()
    whole = not value.is_floating_point() or bool((value == value.round()).all())
    found = float(low), float(high)
    return (*found, float(whole)) if found[0] <= found[1] else None  # else it holds a NaN


def _indices(nest: Nest) -> dict[str, tuple[float, float]]:
    """Return the indices with which the lookups of the whole graph work."""
    found: dict[str, tuple[float, float]] = {}
    for node in nest.inners[0].graph.graph.nodes:
        if node.op == "call_function" and op_name(node) == "embedding":
            table, index = node.args[:2]
            rows = table.meta["val"].shape[0] if isinstance(table, fx.Node) else None
            if isinstance(rows, int) and isinstance(index, fx.Node):
                found[nest.nodes[index]] = 0.0, rows - 1.0
    return found


def _dtype(node: fx.Node) -> tuple[tuple[float, float] | None, bool]:
    """Return the limits of a node's dtype, and whether it is FP32; of a list, its first item's."""
    value = node.meta.get("val")
    if isinstance(value, tuple | list) and value:
        value = value[0]
    dtype = value.dtype if isinstance(value, torch.Tensor) else None
    return (_LIMITS.get(dtype), dtype is torch.float32) if dtype is not None else (None, False)


def _step(node: fx.Node, ids: Mapping[fx.Node, str]) -> Step:
    limits, full = _dtype(node)
    if node.target is operator.getitem:
        source, index = node.args[:2]
        assert isinstance(source, fx.Node)
        part = index == 0 or op_name(source) in _SPLITS
        kind = "getitem" if part else "unknown"
        return Step(kind, (ids[source],), ids[node], limits=limits, full=full)
    kind, given = op_name(node), in_order(node)
    if kind in _RANGES:  # what they begin with depends on the overload
        given = [] if node.kwargs.keys() & _ENDS else [*node.args]
    if not given:  # an own derivative, or an op without a schema
        given = [*node.args] if kind == "own_backward" else list(node.all_input_nodes)
        given = [*given[0]] if given and isinstance(given[0], tuple | list) else given
    kind = _kind(kind, node, given)
    if kind == "pad" and given[3] is None:
        given[3] = 0.0
    if limits is None and not full and not _is_double(node):
        kind = "unknown"  # 16 bits that the program asks for, or complex numbers
    operands = tuple(_operand(item, ids) for item in given)
    return Step(kind, operands, ids[node], _length(kind, node), limits, full)


def _kind(kind: str, node: fx.Node, given: list[Any]) -> str:
    """Return the row for an op, which may depend on its arguments."""
    if kind in _CASTS:
        return _cast(node)
    if kind in ("max", "min") and len(given) > 1 and isinstance(given[1], fx.Node):
        return f"{kind}imum"
    if kind in ("div", "divide") and len(given) > 2 and given[2] is not None:
        return "floor_divide" if given[2] == "floor" else "unknown"
    if kind == "index_put" and given[3]:
        return "unknown"
    if kind == "scatter" and len(given) > 4:
        return "unknown"
    return kind


def _cast(node: fx.Node) -> str:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return "unknown"
    (before, was_full), (after, full) = _dtype(source), _dtype(node)
    if before is None and not was_full and not _is_double(source):
        return "unknown"
    if after is None:
        return "cast" if full or before is not None else "cast_exactly"
    if after == _LIMITS[torch.bool]:
        return "logical_not"
    return "trunc" if before is None else "cast"


def _is_double(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.float64


def _operand(item: Any, ids: Mapping[fx.Node, str]) -> Operand:
    if isinstance(item, fx.Node):
        value = item.meta.get("val")
        return ids[item] if isinstance(value, torch.Tensor | list | tuple) else None
    if isinstance(item, int | float) and not isinstance(item, bool):
        return float(item)
    if isinstance(item, list | tuple):
        names = [ids[part] for part in item if isinstance(part, fx.Node) and _is_tensor(part)]
        return tuple(names) or None
    return None


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _length(kind: str, node: fx.Node) -> int:
    """Return how many numbers each number of the result is made of, or can choose among."""
    if kind in _NORMS:
        shape = in_order(node)[1]
        sizes = shape if isinstance(shape, list | tuple) else ()
        return _product(sizes)
    if kind not in _SUMS or not isinstance(node.args[0], fx.Node):
        return 0
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return 0
    if kind in ("cumsum", "argsort"):
        return _largest(before.shape)
    whole, parts = _product(before.shape), _product(after.shape)
    return whole // parts if whole and parts else 0


def _product(sizes: Any) -> int:
    """Return a product of sizes; 0 if one is a symbol."""
    found = 1
    for size in sizes:
        found *= size if isinstance(size, int) else 0
    return found


def _largest(sizes: Any) -> int:
    """Return the largest size; 0 if one is a symbol."""
    known = [size for size in sizes if isinstance(size, int)]
    return max(known, default=1) if len(known) == len(sizes) else 0
