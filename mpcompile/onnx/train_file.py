"""The description of a ``train.onnx``: which tensors are state, and which belong to the user."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from mpcompile.validation import read_document, read_json, without_head

VERSION = 1
_AGAIN = "write it again with `mpcompile export`"

_Count = Annotated[int, Field(ge=0, le=1 << 48)]
_Name = Annotated[str, Field(min_length=1, max_length=1024)]
_Dtype = Literal["float16", "bfloat16", "float32", "float64", "int32", "int64", "bool", "uint8"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that enters or leaves the graph.

    Attributes:
        name: name of the graph's input or output.
        dtype: as numpy and torch name it.
        shape: its shape.
    """

    name: _Name
    dtype: _Dtype
    shape: tuple[_Count, ...]


@dataclass(frozen=True, slots=True)
class StateSlot(TensorSpec):
    """A tensor that is kept from step to step; its first value is in the weights file.

    Attributes:
        role: its purpose, a value of `mpcompile.step.slots.Role`.
        next: the graph's output that is its next value; "" if no step changes it.
    """

    role: _Name
    next: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The slot and the offset of a tensor of the user's program.

    Attributes:
        name: its name in ``model.state_dict()``; with ``::exp_avg`` after it, the optimizer's
            state of that name for that parameter.
        slot: the state slot that contains it.
        start: the offset of its first element in the slot.
        shape: its shape.
    """

    name: _Name
    slot: _Name
    start: _Count
    shape: tuple[_Count, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """A learning rate, a 0-d FP64 input of the graph.

    Attributes:
        name: name of the input.
        group: index of the optimizer's parameter group.
        initial: its value when the step was exported.
    """

    name: _Name
    group: _Count
    initial: Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class TrainFile:
    """A training step as ONNX files.

    Attributes:
        weights: name of the safetensors file next to it, with the state's first values.
        batch: the inputs a caller gives, in order.
        loss: the output that is the unscaled loss: 0-d FP32.
        state: the tensors that are kept from step to step.
        rates: the learning rates.
        pieces: the user's own tensors in the state.
    """

    weights: _Name
    batch: tuple[TensorSpec, ...]
    loss: _Name
    state: tuple[StateSlot, ...]
    rates: tuple[Rate, ...]
    pieces: tuple[Piece, ...]

    def to_json(self) -> str:
        """Return it as a JSON document; `from_json` reads it back."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str | bytes, where: str | None = None) -> TrainFile:
        """Read an untrusted document.

        Raises:
            BadInput: it does not describe a training step.
        """
        file = read_json(_File, text, "this does not describe a training step", where, _AGAIN)
        return without_head(file, TrainFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File(TrainFile):
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]


def read_train_file(path: Path) -> TrainFile:
    """Read the description of a training step; raise BadInput if the file has none."""
    return TrainFile.from_json(read_document(path, "train.json", _AGAIN), str(path))
