"""Numbers in an ONNX file that FP16 cannot hold, and their effect on the nodes that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import ml_dtypes
import numpy as np
import onnx_ir as ir

from mpcompile.onnx_graph.masks import MASK, ends_in_softmax
from mpcompile.onnx_graph.nest import Nest
from mpcompile.onnx_graph.values import constant_of, is_full, is_standard
from mpcompile.plan.growth import BOUNDED
from mpcompile.plan.op_table import ONNX_RULES, UNKNOWN
from mpcompile.plan.rule import PrecisionClass
from mpcompile.precision import Precision

_SMALLEST = 2.0**-25
"""Half of the smallest FP16 number: a number that is not above it rounds to zero."""
_PIECE = 1 << 22
_DROPS_NEGATIVE = frozenset(
    "Exp Max ReduceMax MaxPool GlobalMaxPool Relu Elu Celu Selu Gelu Softplus Mish Swish".split()
)
"""Ops that do not pass on a very negative number."""

DTYPES = {Precision.FP16: np.dtype(np.float16), Precision.BF16: np.dtype(ml_dtypes.bfloat16)}


def largest_of(tensor: ir.TensorProtocol) -> float:
    """Return the finite number of largest magnitude in a tensor, with its sign; 0 if none."""
    return max(_extremes(tensor), key=abs)


@dataclass(frozen=True, slots=True)
class UnfitUse:
    """A constant that a node must not meet in 16 bits.

    Attributes:
        value: the constant: an initializer, or what a Constant makes.
        number: its number of the largest magnitude.
        source: id of the node that reads it; another node may read that node's result.
    """

    value: ir.Value
    number: float
    source: str


def unfit_readers(nest: Nest, precision: Precision) -> dict[str, str]:
    """Return, per node id, why the node must not compute in 16 bits; see `unfit_uses`."""
    return {
        name: _sentence(use.value, use.number)
        if use.source == name
        else f"it reads a result of {use.source}, whose constant FP16 cannot hold"
        for name, use in unfit_uses(nest, precision).items()
    }


def unfit_uses(nest: Nest, precision: Precision) -> dict[str, UnfitUse]:
    """Return, per node id, the constant for which the node must not compute in 16 bits.

    A node stays in FP32 if it reads a constant that is beyond the range of FP16 or becomes zero
    in it. So does a Tensor-Core op that reads a result computed from such a large constant. BF16
    has the range of FP32. An infinite constant is assumed to be intended.

    Args:
        nest: the graph.
        precision: the 16-bit format.
    """
    if precision is not Precision.FP16:
        return {}
    largest = dict.fromkeys(mask_constants(nest), MASK)
    reach: dict[ir.Value, UnfitUse] = {}
    uses: dict[str, UnfitUse] = {}
    for node, _ in nest.visited():
        name = nest.nodes[node]
        own = _own(node, name, largest)
        carried = next((reach[v] for v in node.inputs if v is not None and v in reach), None)
        rule = ONNX_RULES.get(node.op_type, UNKNOWN) if is_standard(node) else UNKNOWN
        if own is not None:
            uses[name] = own
        elif carried is not None and rule.precision_class is PrecisionClass.TENSOR_CORE:
            uses[name] = carried
        large = own is not None and abs(own.number) > Precision.FP16.largest
        source = own if large else carried
        ends = rule.precision_class is PrecisionClass.TENSOR_CORE or node.op_type in BOUNDED
        if source is not None and source.number < 0 and node.op_type in _DROPS_NEGATIVE:
            ends = True
        if source is not None and not ends:
            reach |= dict.fromkeys((v for v in node.outputs if is_full(v)), source)
    return uses


def mask_constants(nest: Nest) -> tuple[ir.Value, ...]:
    """Return the constants whose numbers beyond FP16 are masks, see `mpcompile.onnx_graph.masks`.

    None of their finite numbers is beyond FP16 on the positive side.
    """
    found = []
    for value in nest.values:
        tensor = constant_of(value)
        if tensor is not None and ends_in_softmax(value):
            least, most = _extremes(tensor)
            if least < -Precision.FP16.largest and most <= Precision.FP16.largest:
                found.append(value)
    return tuple(found)


def narrowed(tensor: ir.TensorProtocol, precision: Precision, mask: bool = False) -> ir.LazyTensor:
    """Return a tensor in a 16-bit format, made when it is written.

    A finite number beyond the format becomes its largest number. Infinities and NaN stay, and a
    number that becomes zero keeps its sign.

    Args:
        tensor: an FP32 tensor.
        precision: the format.
        mask: whether it is one of `mask_constants`.
    """
    dtype = DTYPES[precision]
    limit = np.float32(precision.largest)
    least = np.float32(MASK) if mask and precision is Precision.FP16 else -limit

    def make() -> ir.TensorProtocol:
        made = np.empty(tuple(tensor.shape.numpy()), dtype)
        flat, done = made.reshape(-1), 0
        for piece in _pieces(tensor):
            kept = np.where(np.isfinite(piece), np.clip(piece, least, limit), piece)
            flat[done : done + piece.size] = kept.astype(dtype)
            done += piece.size
        return ir.Tensor(made, dtype=onnx_dtype(precision))

    return ir.LazyTensor(
        make, dtype=onnx_dtype(precision), shape=shape_of(tensor), name=tensor.name
    )


def shape_of(tensor: ir.TensorProtocol) -> ir.Shape:
    """Return a tensor's shape in the form that values have."""
    return ir.Shape(tensor.shape.numpy())


def onnx_dtype(precision: Precision) -> ir.DataType:
    """Return ONNX's dtype of a format."""
    return {
        Precision.FP16: ir.DataType.FLOAT16,
        Precision.BF16: ir.DataType.BFLOAT16,
        Precision.FP32: ir.DataType.FLOAT,
    }[precision]


def saturated(tensor: ir.TensorProtocol, precision: Precision) -> int:
    """Return how many finite numbers of a tensor are beyond the range of a 16-bit format."""
    limit = precision.largest
    return sum(
        int(np.count_nonzero(np.isfinite(piece) & (np.abs(piece) > limit)))
        for piece in _pieces(tensor)
    )


def _extremes(tensor: ir.TensorProtocol) -> tuple[float, float]:
    """Return a tensor's smallest finite number, at most 0, and its largest, at least 0."""
    least = most = 0.0
    for piece in _pieces(tensor):
        finite = piece[np.isfinite(piece)]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    return least, most


def _pieces(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Yield a tensor's numbers in pieces, because those in a file may not fit into memory."""
    flat = tensor.numpy().reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield np.asarray(flat[start : start + _PIECE])


def _own(node: ir.Node, name: str, largest: dict[ir.Value, float]) -> UnfitUse | None:
    """Return the constant that the node reads and that FP16 cannot hold."""
    for index, value in enumerate(node.inputs):
        tensor = constant_of(value)
        if value is None or tensor is None:
            continue
        if value not in largest:
            largest[value] = largest_of(tensor)
        number = largest[value]
        bounds = node.op_type == "Clip" and index == (2 if number > 0 else 1)
        large = abs(number) > Precision.FP16.largest
        if isfinite(number) and ((large and not bounds) or 0 < abs(number) <= _SMALLEST):
            return UnfitUse(value, number, name)
    return None


def _sentence(value: ir.Value, number: float) -> str:
    what = (
        "the largest number of"
        if (value.const_value is not None and value.const_value.size > 1)
        else ""
    )
    held = f"{what} {value.name} is {number:g}".strip()
    if abs(number) > Precision.FP16.largest:
        return f"{held}, which becomes {'-' if number < 0 else ''}inf in FP16"
    return f"{held}, which becomes 0 in FP16"
