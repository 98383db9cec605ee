"""Batches of a graph's inputs from an untrusted ``.npz`` file.

Each batch is read only when it is requested, so a small compressed file that claims a large size
takes no memory. Nothing is unpickled.
Source: the NPY format, numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from mpcompile.errors import BadInput, did_you_mean
from mpcompile.validation import short

LARGEST_BATCH = 1 << 31
"""Most bytes of one array in one batch, or of a whole array in Fortran order."""

Inputs = Mapping[str, tuple[np.dtype, tuple[int | None, ...]]]
"""Dtype and shape of each input of a graph; a dimension that is None may have any size."""

_MOST_MEMBERS = 10_000
_MOST_BATCHES = 100_000_000
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SAVE = "write it with numpy.savez, one array per input"


@dataclass(frozen=True, slots=True)
class _Member:
    """One array of the file, with its header already read.

    Attributes:
        name: the input's name.
        dtype: the input's dtype.
        stored: the dtype in the file: the same numbers, perhaps in another byte order.
        shape: the shape of one batch.
        count: how many batches it holds.
        data: the file, at the first number that was not read yet.
        column_major: whether the numbers are in Fortran order, so that batches are interleaved.
        many: whether the array has a batch axis; else it is the same in every batch.
    """

    name: str
    dtype: np.dtype
    stored: np.dtype
    shape: tuple[int, ...]
    count: int
    data: IO[bytes]
    column_major: bool
    many: bool


def read_batches(path: Path, inputs: Inputs) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches in a file, one after the other.

    Args:
        path: a ``.npz`` file with one array per input, under the input's name. An array has the
            input's shape for one batch, or one more axis in front for many batches. If some arrays
            have that axis, the others are the same in every batch.
        inputs: the dtypes and shapes of a graph's inputs.

    Raises:
        BadInput: at once if an array is missing or wrong; during iteration if data is damaged.
    """
    where = str(path)
    if not path.is_file():
        raise BadInput("there is no such file", where, "give the path of a .npz file")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadInput("this is not a .npz file", where, _SAVE) from error
    members = [_opened(archive, name, inputs, where) for name in _names(archive, inputs, where)]
    counts = {member.name: member.count for member in members if member.many}
    if len(set(counts.values())) > 1:
        (one, few), (other, many) = (f(counts.items(), key=_second) for f in (min, max))
        what = f"{short(one)} has {few:,} batches, but {short(other)} has {many:,}"
        raise BadInput(what, where, "give every input the same number of batches")
    count = max(counts.values(), default=1)
    if not 0 < count <= _MOST_BATCHES:
        raise BadInput("the file holds no batches, or far too many", where, "give at least one")
    return _batches(members, count, where)


def _second(item: tuple[str, int]) -> int:
    return item[1]


def _names(archive: zipfile.ZipFile, inputs: Inputs, where: str) -> list[str]:
    """Return the names of the arrays in the file, which must be exactly the inputs' names."""
    files = archive.infolist()
    names = [file.filename.removesuffix(".npy") for file in files[:_MOST_MEMBERS]]
    if len(set(names)) < len(files):
        raise BadInput("the file holds an array twice, or far too many", where, _SAVE)
    for name in names:
        if name not in inputs:
            what = f"the graph has no input {short(name)}{did_you_mean(name, inputs)}"
            raise BadInput(what, where, "name the arrays after the graph's inputs")
    for name in inputs:
        if name not in names:
            raise BadInput(f"the input {short(name)} is missing", where, _SAVE)
    return names


def _opened(archive: zipfile.ZipFile, name: str, inputs: Inputs, where: str) -> _Member:
    """Open an array of the file, and check its header against the input."""
    dtype, expected = inputs[name]
    try:
        file = archive.getinfo(f"{name}.npy")
        if file.compress_type not in _PLAIN or file.flag_bits & 1:
            raise BadInput(
                f"{short(name)} is encrypted, or compressed in an unknown way", where, _SAVE
            )
        data = archive.open(file)
        version = np.lib.format.read_magic(data)
        shape, column_major, stored = _HEADERS[version](data)
    except _DAMAGED as error:
        raise BadInput(f"{short(name)} is not an array", where, _SAVE) from error
    if stored.hasobject:
        raise BadInput(f"{short(name)} holds Python objects, which are not read", where, _SAVE)
    if not _same(stored, dtype):
        raise BadInput(
            f"{short(name)} is of {short(str(stored))}, not {dtype}", where, "convert it"
        )
    many = len(shape) == len(expected) + 1
    one = shape[1:] if many else shape
    if not _fits(one, expected):
        wanted = "[" + ", ".join("?" if size is None else str(size) for size in expected) + "]"
        what = f"{short(name)} has the shape {short(list(shape))}, not {wanted}"
        raise BadInput(what, where, "only one more axis in front, for batches, is allowed")
    kept = shape if column_major else one
    if any(size < 0 for size in shape) or prod(kept) * stored.itemsize > LARGEST_BATCH:
        raise BadInput(f"{short(name)} has batches of over {LARGEST_BATCH:,} bytes", where)
    if data.tell() + prod(shape) * stored.itemsize != file.file_size:
        what = f"{short(name)} has {file.file_size:,} bytes, too few or many for its shape"
        raise BadInput(what, where, _SAVE)
    count = shape[0] if many else 1
    return _Member(name, dtype, stored, one, count, data, column_major, many)


def _same(stored: np.dtype, dtype: np.dtype) -> bool:
    """Whether numbers in a file have a dtype; NumPy saves formats it does not know as bytes."""
    if dtype.kind == "V":
        return stored.kind == "V" and stored.names is None and stored.itemsize == dtype.itemsize
    return stored.newbyteorder("=") == dtype


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        size is None or size == found for found, size in zip(shape, expected, strict=True)
    )


def _batches(members: list[_Member], count: int, where: str) -> Iterator[dict[str, np.ndarray]]:
    held = {
        member.name: _read(member, (count,) if member.many else (), where)
        for member in members
        if member.column_major or not member.many
    }
    for index in range(count):
        batch = {}
        for member in members:
            array = held[member.name] if member.name in held else _read(member, (), where)
            own = array[index] if member.name in held and member.many else array
            batch[member.name] = np.ascontiguousarray(own).reshape(member.shape)
        yield batch


def _read(member: _Member, axis: tuple[int, ...], where: str) -> np.ndarray:
    """Return the next numbers of an array, with or without a batch axis in front."""
    shape = (*axis, *member.shape)
    size = prod(shape) * member.stored.itemsize
    try:
        data = member.data.read(size)
    except _DAMAGED as error:
        raise BadInput(f"the data of {short(member.name)} is damaged", where, _SAVE) from error
    if len(data) < size:
        raise BadInput(f"the data of {short(member.name)} is cut off", where, _SAVE)
    array = np.frombuffer(data, member.stored) if size else np.empty(0, member.stored)
    shaped = array.reshape(shape[::-1]).T if member.column_major else array.reshape(shape)
    own: np.ndarray = shaped.view(member.dtype) if member.dtype.kind == "V" else shaped
    return own.astype(member.dtype, order="C", copy=True)


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
    EOFError,
    MemoryError,
    SyntaxError,
)
_HEADERS: dict[object, Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
