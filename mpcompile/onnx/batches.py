"""Batches in an ``.npz`` file, which may come from anyone: nothing in it is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpcompile.errors import BadInput, did_you_mean

Array = NDArray[np.generic]
InputType = tuple[np.dtype[np.generic], tuple[int | None, ...]]
"""Dtype and shape of an input; None is a dimension of any size."""

_LARGEST = 1 << 34  # bytes an array may take
_ADVICE = "write it with numpy.savez(FILE, NAME=ARRAY, ...)"


def read_batches(path: Path, inputs: Mapping[str, InputType]) -> Iterator[dict[str, Array]]:
    """Yield the batches of a file.

    Each array is named after an input and is of its shape, or has one more dimension in front: the
    number of batches, which all arrays then share.

    Args:
        path: an ``.npz`` file.
        inputs: what a model must be given, by name.

    Raises:
        BadInput: the file is none, or its arrays do not fit the inputs.
    """
    arrays = _arrays(path)
    for name in arrays:
        if name not in inputs:
            near = did_you_mean(name, inputs)
            raise BadInput(
                f"the model has no input {name!r}{near}", str(path), f"give {_listed(inputs)}"
            )
    for name in inputs:
        if name not in arrays:
            raise BadInput(f"there is no array {name!r}", str(path), f"give {_listed(inputs)}")
    counts = {name: _count(name, arrays[name], inputs[name], path) for name in arrays}
    many = {count for count in counts.values() if count is not None}
    if len(many) > 1:
        raise BadInput(
            f"the arrays hold different numbers of batches: {_listed(map(str, sorted(many)))}",
            str(path),
            "give as many of each",
        )
    for k in range(many.pop() if many else 1):
        yield {name: array if counts[name] is None else array[k] for name, array in arrays.items()}


def _arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise BadInput("there is no such file", str(path), "give the path of an .npz")
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # of zipfile, zlib, numpy: a broken archive brings up any of them
        what = f"this is no .npz file ({_first_line(error)})"
        raise BadInput(what, str(path), _ADVICE) from error


def _check_sizes(path: Path) -> None:
    """Refuse an archive whose members are larger than what stands in it could ever be."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > _LARGEST or member.file_size > 1100 * member.compress_size + 4096:
                raise ValueError(f"{member.filename} claims {member.file_size:,} bytes")


def _count(name: str, array: Array, wanted: InputType, path: Path) -> int | None:
    """Return the number of batches in an array; None if it is one batch."""
    dtype, shape = wanted
    if array.dtype != dtype:
        raise BadInput(f"{name} is {array.dtype}, the model takes {dtype}", str(path), _ADVICE)
    if _fits(array.shape, shape):
        return None
    if array.ndim == len(shape) + 1 and _fits(array.shape[1:], shape) and len(array):
        return len(array)
    text = ", ".join("any" if size is None else str(size) for size in shape)
    raise BadInput(
        f"{name} is of shape {list(array.shape)}, the model takes [{text}]",
        str(path),
        "give that, or several batches one behind another",
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or size == want for size, want in zip(shape, wanted, strict=True)
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
