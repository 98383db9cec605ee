"""Check the claims of tensors and types in an ONNX file before other code uses them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import onnx
import onnx_ir as ir
from onnx import TensorProto

from mpcompile.errors import BadInput
from mpcompile.validation import short

AGAIN = "export the model again"
MOST_ELEMENTS = 1 << 48
"""Limit of a tensor; also the limit of the product of its dimensions other than 0."""
MOST_DIMENSIONS = 64
"""The limit of a NumPy array."""
OPEN = -1
"""A dimension of a value that some exporters write for an unknown one, as ONNX Runtime takes it."""
DEEPEST_TYPE = 8
"""Limit of sequences and optionals inside each other."""

_PARTS = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
_SIX_BITS = (ir.DataType.FLOAT6E2M3, ir.DataType.FLOAT6E3M2)
_NUMBERS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}
"""The field for the numbers of a dtype; all other dtypes use ``int32_data``."""


def check_tensor(tensor: TensorProto, name: str, where: str | None) -> None:
    """Raise BadInput if a tensor's dtype, shape and amount of data do not fit each other.

    `external_data` checks data that is in another file.

    Args:
        tensor: a tensor of any dtype and shape.
        name: its name in messages.
        where: the file.
    """
    dtype = dtype_of(tensor.data_type, name, where)
    count = _elements(tensor.dims, name, where)
    if tensor.HasField("segment"):
        raise BadInput(f"{name} is a segment of a tensor, which no runtime reads", where, AGAIN)
    filled = [field for field in _NUMBERS if len(getattr(tensor, field))]
    if tensor.HasField("raw_data"):
        filled.append("raw_data")
    if tensor.data_location == TensorProto.EXTERNAL:
        if filled:
            raise BadInput(f"{name} has data both in this file and in another", where, AGAIN)
        if dtype is ir.DataType.STRING:
            raise BadInput(f"{name} has texts in another file", where, AGAIN)
        return
    if len(tensor.external_data):
        raise BadInput(
            f"{name} names another file, but declares that its data is in this file", where, AGAIN
        )
    if len(filled) > 1:
        raise BadInput(f"{name} has its data twice: as {' and as '.join(filled)}", where, AGAIN)
    field = filled[0] if filled else _FIELDS.get(dtype, "int32_data")
    if field == "raw_data" and dtype is ir.DataType.STRING:
        raise BadInput(f"{name} holds texts as raw bytes", where, AGAIN)
    if field not in ("raw_data", _FIELDS.get(dtype, "int32_data")):
        raise BadInput(f"{name} holds {dtype.name} as {field}", where, AGAIN)
    found, needed = len(getattr(tensor, field)), _needed(field, dtype, count)
    if found != needed:
        claim = f"its shape {short(list(tensor.dims))} of {dtype.name} needs {needed:,}"
        what = "bytes" if field == "raw_data" else f"numbers in {field}"
        raise BadInput(f"{name} holds {found:,} {what}, but {claim}", where, AGAIN)
    if dtype in _SIX_BITS:
        _check_six_bits(tensor, name, where)


def bytes_of(tensor: TensorProto) -> int:
    """Return how many bytes a checked tensor's raw data takes."""
    return _needed("raw_data", ir.DataType(tensor.data_type), prod(tensor.dims))


def dtype_of(number: int, name: str, where: str | None) -> ir.DataType:
    """Return a dtype by its number in the format; raises BadInput if there is no such dtype."""
    try:
        dtype = ir.DataType(number)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype is ir.DataType.UNDEFINED:
        raise BadInput(f"{name} has no known dtype (number {number})", where, AGAIN)
    return dtype


def check_type(given: onnx.TypeProto, name: str, where: str | None, depth: int = 0) -> None:
    """Raise BadInput if the type of a value has no dtype, or a shape that no tensor can have.

    A dimension may be `OPEN`.
    """
    if depth > DEEPEST_TYPE:
        raise BadInput(f"the type of {name} is nested more than {DEEPEST_TYPE} deep", where, AGAIN)
    kind = given.WhichOneof("value")
    if kind is None:
        return
    if kind in ("sequence_type", "optional_type"):
        inner = getattr(given, kind)
        if inner.elem_type.WhichOneof("value") is None:
            raise BadInput(
                f"{name} is a {kind.removesuffix('_type')} without an element type", where, AGAIN
            )
        check_type(inner.elem_type, name, where, depth + 1)
    elif kind in ("tensor_type", "sparse_tensor_type"):
        inner = getattr(given, kind)
        dtype_of(inner.elem_type, name, where)
        sizes = (dim.dim_value for dim in inner.shape.dim)
        _elements((1 if size == OPEN else size for size in sizes), name, where)
    else:
        what = kind.removesuffix("_type").replace("_", " ")
        raise BadInput(f"{name} is a {what}, which mpcompile does not handle", where)


def _elements(dims: Iterable[int], name: str, where: str | None) -> int:
    """Return how many elements a shape has."""
    sizes = list(dims)
    if len(sizes) > MOST_DIMENSIONS:
        raise BadInput(
            f"{name} has {len(sizes):,} dimensions, more than {MOST_DIMENSIONS}", where, AGAIN
        )
    if any(size < 0 for size in sizes):
        raise BadInput(f"{name} has a negative dimension: {short(sizes)}", where, AGAIN)
    if prod(max(size, 1) for size in sizes) > MOST_ELEMENTS:
        raise BadInput(
            f"{name} claims the shape {short(sizes)}, which is too large for a tensor", where, AGAIN
        )
    return prod(sizes)


def _needed(field: str, dtype: ir.DataType, count: int) -> int:
    """Return how many bytes, or entries of a field, a number of elements takes."""
    if field == "raw_data":
        return (count * dtype.bitwidth + 7) // 8
    if dtype is ir.DataType.STRING:
        return count
    if dtype in _PARTS:
        return 2 * count
    if dtype.bitwidth in (2, 4) and field == "int32_data":  # packed as bytes
        return (count * dtype.bitwidth + 7) // 8
    return count


def _check_six_bits(tensor: TensorProto, name: str, where: str | None) -> None:
    """Check with the library that the padding and high bits of a tensor are zero."""
    try:
        ir.serde.TensorProtoTensor(tensor).tobytes()
    except ValueError as error:
        raise BadInput(f"{name} holds bits outside its six-bit numbers", where, AGAIN) from error
