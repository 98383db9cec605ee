"""Parts for malformed ONNX files: kinds by name, hostile values, walks over models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from bench.robustness.malformed_seeds import seeds

KINDS: dict[str, Callable[[Random, Path], None]] = {}

HOSTILE_NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1)
HOSTILE_TEXTS = (
    "",
    "x",
    "\0",
    "../../x",
    "/etc/passwd",
    "\x1b[31m",
    "a" * 5000,
    "%s%n",
    "\n",
    "\u202e",
)


def kind(function: Callable[[Random, Path], None]) -> Callable[[Random, Path], None]:
    """Register a kind of damage under the name of its function."""
    KINDS[function.__name__.strip("_").replace("_", " ")] = function
    return function


def any_model(random: Random) -> ModelProto:
    """Return a copy of one of the valid models."""
    model = ModelProto()
    model.CopyFrom(random.choice(list(seeds().values())))
    return model


def save(model: ModelProto, folder: Path) -> None:
    """Write a model as ``model.onnx`` into a folder."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def spot(random: Random, data: bytes | bytearray) -> int:
    """Return an offset in a file, seldom inside its weights, where any byte is valid."""
    weights = [t.raw_data for model in seeds().values() for t in model.graph.initializer]
    start, length = max((data.find(raw), len(raw)) for raw in weights)
    if start < 0 or random.random() < 0.05:
        return random.randrange(len(data))
    place = random.randrange(len(data) - length)
    return place if place < start else place + length


def varint(number: int) -> bytes:
    """Return a number as Protocol Buffers encode it."""
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """Return an encoded field of a message; joined fields are a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def messages_of(message: Any) -> Iterator[Any]:
    """Yield a message and all messages inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from messages_of(inner)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside it."""
    return (message for message in messages_of(graph) if isinstance(message, onnx.GraphProto))


def nodes_of(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside it."""
    return (message for message in messages_of(graph) if isinstance(message, NodeProto))


def disturb(random: Random, message: Any) -> None:
    """Set one field of a message to a hostile value."""
    field = random.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None:
        if field.is_repeated:
            getattr(message, field.name).add()
        else:
            getattr(message, field.name).SetInParent()
        return
    values: tuple[object, ...] = HOSTILE_NUMBERS
    if field.cpp_type == field.CPPTYPE_STRING:
        values = HOSTILE_TEXTS
        if field.type == field.TYPE_BYTES:
            values = tuple(text.encode() for text in HOSTILE_TEXTS)
    elif field.enum_type is not None:
        values = tuple(field.enum_type.values_by_number)
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        values = (0.0, float("nan"), float("inf"), 1e38)
    value = random.choice(values)
    try:
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    except ValueError:  # beyond the field's range
        return
