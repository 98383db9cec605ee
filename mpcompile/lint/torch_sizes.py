"""Facts for the rules from a PyTorch op's shapes: sums, Tensor-Core sizes, layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from mpcompile.lint.program import Size
from mpcompile.plan.op_table import TORCH_RULES, UNKNOWN
from mpcompile.program.node_tensors import shape_of
from mpcompile.torch_private.ops import given, op_name

_FACTORS = {
    "linear": ("input", "weight"),
    "matmul": ("self", "other"),
    "linalg_matmul": ("input", "other"),
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "_addmm_activation": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
}
_ADDS_UP = frozenset(("sum", "scatter sum"))
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_RUNNING = frozenset(("cumsum", "logcumsumexp", "cumprod"))


@dataclass(frozen=True, slots=True)
class TorchLengths:
    """The facts in an op's shapes.

    Attributes:
        reads: its operands in the order of its arguments, but the factors of a product first.
        length: how many numbers are added up for each result; 0 if none are.
        flops: the FLOPs of a Tensor-Core op.
        sizes: the lengths of a Tensor-Core op's rows.
        channels_last: whether a convolution's input is channels-last.
    """

    reads: tuple[fx.Node, ...]
    length: int = 0
    flops: int = 0
    sizes: tuple[Size, ...] = ()
    channels_last: bool | None = None


def lengths_of(node: fx.Node) -> TorchLengths:
    """Return the facts in a call's shapes."""
    if not hasattr(node.target, "_schema"):
        return TorchLengths(tuple(node.all_input_nodes))
    kind, row, options = op_name(node), TORCH_RULES.get(op_name(node), UNKNOWN).name, given(node)
    operands = tuple(_nodes(options.values()))
    if kind in _FACTORS:
        return _product(node, kind, options, operands)
    if row == "conv":
        return _convolution(node, kind, options, operands)
    if kind == "scaled_dot_product_attention":
        return _attention(options, operands)
    if kind in _GATES and "params" in options:
        return _recurrent(options, operands, _GATES[kind])
    if row in _ADDS_UP and operands:
        return TorchLengths(operands, _added(node, kind, row, operands, options))
    return TorchLengths(operands)


def _nodes(values: Any) -> Iterator[fx.Node]:
    for value in values:
        if isinstance(value, fx.Node):
            yield value
        elif isinstance(value, tuple | list):
            yield from _nodes(value)


def _shape(node: object) -> tuple[int, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return shape_of(value) if isinstance(value, torch.Tensor) else ()


def _product(
    node: fx.Node, kind: str, options: dict[str, Any], operands: tuple[fx.Node, ...]
) -> TorchLengths:
    first, second = (options[name] for name in _FACTORS[kind])
    left, right, result = _shape(first), _shape(second), _shape(node)
    reads = (first, second, *(item for item in operands if item not in (first, second)))
    if not left or not right:
        return TorchLengths(reads)
    length = left[-1]
    if kind == "linear":
        sizes = (Size("inputs", length), Size("outputs", right[0] if len(right) > 1 else 1))
    elif len(left) < 2 or len(right) < 2:
        return TorchLengths(reads, length)  # a product with a vector runs on no Tensor Core
    else:
        sizes = (Size("columns of the left factor", length), Size("columns", right[-1]))
    return TorchLengths(reads, length, 2 * prod(result) * length, sizes)


def _convolution(
    node: fx.Node, kind: str, options: dict[str, Any], operands: tuple[fx.Node, ...]
) -> TorchLengths:
    image, weight = options.get("input", options.get("self")), options.get("weight")
    shape = _shape(weight)
    if not shape or not isinstance(image, fx.Node) or not isinstance(weight, fx.Node):
        return TorchLengths(operands)
    swapped = "transpose" in kind or bool(options.get("transposed"))
    # Each number of the weight meets each position of the result, or of the input if transposed.
    flops = 2 * prod(_shape(image if swapped else node)) * prod(shape[1:])
    sizes: tuple[Size, ...] = ()
    if options.get("groups", 1) == 1:
        ends = shape[:2] if swapped else (shape[1], shape[0])
        sizes = (Size("input channels", ends[0]), Size("output channels", ends[1]))
    return TorchLengths(
        operands, 0, flops, sizes, _is_channels_last(image.meta["val"], node.meta["val"])
    )


def _is_channels_last(image: torch.Tensor, result: torch.Tensor) -> bool | None:
    """Whether a convolution reads channels-last; with one channel or pixel, the result decides."""
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(image.dim())
    if order is None:
        return None
    value = result if image.is_contiguous() else image
    return value.is_contiguous(memory_format=order)


def _attention(options: dict[str, Any], operands: tuple[fx.Node, ...]) -> TorchLengths:
    query, key, value = (_shape(options[name]) for name in ("query", "key", "value"))
    scores = prod(query[:-1]) * key[-2]
    sizes = [Size("features of a head", query[-1])]
    if value[-1] != query[-1]:
        sizes.append(Size("features of a head's values", value[-1]))
    return TorchLengths(operands, 0, 2 * scores * (query[-1] + value[-1]), tuple(sizes))


def _recurrent(options: dict[str, Any], operands: tuple[fx.Node, ...], gates: int) -> TorchLengths:
    sequence = options.get("input", options.get("data"))
    weights = [shape for item in options["params"] if len(shape := _shape(item)) == 2]
    shape = _shape(sequence)
    if not shape or len(weights) < 2:
        return TorchLengths(operands)
    flops = 2 * prod(shape) // shape[-1] * sum(map(prod, weights))
    cells = weights[0][0] // gates
    sizes = [Size("inputs", shape[-1]), Size("cells", cells)]
    if weights[1][1] != cells:
        sizes.append(Size("projected outputs", weights[1][1]))
    return TorchLengths(operands, 0, flops, tuple(sizes))


def _added(
    node: fx.Node, kind: str, row: str, operands: tuple[fx.Node, ...], options: dict[str, Any]
) -> int:
    read = _shape(operands[0])
    if kind in _RUNNING:
        return read[int(options["dim"])] if read else 0
    if row == "scatter sum":
        source = options.get("src", options.get("source"))
        read = _shape(source)
    value = node.meta.get("val")
    made = value[0] if isinstance(value, tuple | list) else value
    written = prod(shape_of(made)) if isinstance(made, torch.Tensor) else 0
    return prod(read) // written if read and written else 0
