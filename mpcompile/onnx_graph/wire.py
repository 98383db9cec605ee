"""How many messages an ONNX file claims to hold, counted before a parser takes memory for them.

A message of two bytes in a file becomes about 150 bytes of memory when it is parsed, so a file's
size alone bounds nothing. Numbers and raw data are skipped, not read.
Source: the encoding of Protocol Buffers, protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from mmap import mmap

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mpcompile.errors import BadInput

MOST_ENTRIES = 2_000_000
"""Messages and strings in one file; a graph of 50,000 nodes has about a million."""
DEEPEST = 100
"""Messages inside messages: what the parsers of Protocol Buffers allow."""

_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5
_TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def check_wire(data: bytes | mmap, where: str) -> None:
    """Raise BadInput if a file is not encoded as a model, or holds too many or too deep messages.

    Args:
        data: the file.
        where: its name.
    """
    open_ends = [(len(data), onnx.ModelProto.DESCRIPTOR)]
    position, entries = 0, 0
    try:
        while open_ends:
            end, message = open_ends[-1]
            if position == end:
                open_ends.pop()
                continue
            tag, position = _varint(data, position)
            kind, field = tag & 7, _fields(message).get(tag >> 3)
            if kind == _SIZED:
                size, position = _varint(data, position)
                if size > end - position:
                    raise BadInput("the file ends before its contents do", where, "fetch it again")
                entries += field is not None
                if field is not None and isinstance(field, Descriptor):
                    open_ends.append((position + size, field))
                else:
                    position += size
            elif kind == _VARINT:
                _, position = _varint(data, position)
            elif kind in (_EIGHT, _FOUR):
                position += 8 if kind == _EIGHT else 4
            else:
                raise _not_a_model(where)
            if position > end:
                raise _not_a_model(where)
            if entries > MOST_ENTRIES or len(open_ends) > DEEPEST:
                what = f"more than {MOST_ENTRIES:,} parts, or parts nested over {DEEPEST} deep"
                raise BadInput(f"the file claims {what}", where, "give a smaller model")
    except IndexError as error:
        raise _not_a_model(where) from error


def _not_a_model(where: str) -> BadInput:
    return BadInput("this is not an ONNX file", where, "give a file that ONNX can read")


def _varint(data: bytes | mmap, position: int) -> tuple[int, int]:
    value = data[position]
    if value < 128:
        return value, position + 1
    value &= 127
    for shift in range(7, 70, 7):
        position += 1
        byte = data[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position + 1
    raise IndexError


@cache
def _fields(message: Descriptor) -> dict[int, Descriptor | bool]:
    """Return, per field that counts, the message that it holds, or True for a text."""
    return dict(_counted(message))


def _counted(message: Descriptor) -> Iterator[tuple[int, Descriptor | bool]]:
    for field in message.fields:
        if field.message_type is not None:
            yield field.number, field.message_type
        elif field.type in _TEXT:
            yield field.number, True
