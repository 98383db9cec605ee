"""A training step's state in a safetensors file: read it, check it, and write it completely.

Source: the format, huggingface.co/docs/safetensors. Nothing is unpickled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mpcompile.artifacts import flush
from mpcompile.errors import BadInput
from mpcompile.onnx.device_memory import Array, dtype_of
from mpcompile.onnx.train_file import StateSlot
from mpcompile.validation import short

_ADVICE = "give a state that was saved by this step"


def read_state(path: Path, slots: Sequence[StateSlot]) -> dict[str, Array]:
    """Return the state in an untrusted file.

    Raises:
        BadInput: it is no safetensors file, or has other names, dtypes or shapes.
    """
    where = str(path)
    if not path.is_file():
        raise BadInput("there is no such file", where, "give the path of a .safetensors file")
    try:
        with safe_open(path, "np") as file:
            return _read(file, slots, where)
    except (SafetensorError, OSError, MemoryError) as error:
        what = f"this is not a safetensors file ({' '.join(str(error).split())})"
        raise BadInput(what, where, _ADVICE) from error


def _read(file: Any, slots: Sequence[StateSlot], where: str) -> dict[str, Array]:
    there = set(file.keys())
    wanted = {slot.name: slot for slot in slots}
    for what, names in (
        ("the state lacks", wanted.keys() - there),
        ("the step has no", there - wanted.keys()),
    ):
        if names:
            raise BadInput(f"{what} {short(min(names))}", where, _ADVICE)
    state = {}
    for name, slot in wanted.items():
        shape = tuple(file.get_slice(name).get_shape())
        kind = str(file.get_slice(name).get_dtype())
        dtype = _DTYPES.get(kind, kind)
        if shape != slot.shape or dtype != slot.dtype:
            what = (
                f"{name} is {dtype}{list(shape)} in the file, but "
                f"{slot.dtype}{list(slot.shape)} in the step"
            )
            raise BadInput(what, where, _ADVICE)
        state[name] = file.get_tensor(name).astype(dtype_of(slot), copy=False)
    return state


def write_state(path: Path, state: Mapping[str, Array]) -> None:
    """Write a state to a file, which gets its name only when it is on the disk.

    An existing file is replaced.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            save_file(dict(state), fresh)
            flush(fresh)
            fresh.replace(path)
        flush(path.parent)  # the new name must be on the disk too
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"the state cannot be written ({reason})", str(path), "choose another file"
        ) from error


_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
    "U8": "uint8",
}
