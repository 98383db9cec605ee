"""Count the messages of an ONNX file before a parser allocates memory for them.

A message of two bytes in a file becomes about 150 bytes of memory when it is parsed, so the size
of a file is no bound. Numbers and raw data are skipped, not read. Texts must be UTF-8: the parser
keeps other texts, and the first code that writes them fails.
Source: the encoding of Protocol Buffers, protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from functools import cache
from mmap import mmap
from typing import Any

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mpcompile.errors import BadInput

MOST_ENTRIES = 1_000_000
"""Messages and texts in one file; PyTorch's exporter writes about 40 of them per node."""
DEEPEST = 100
"""Messages inside messages: the limit of the parsers of Protocol Buffers."""

_Fields = dict[int, tuple[bool, Descriptor | None, bool]]
_UNCOUNTED = (False, None, False)
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5
_TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def check_wire(data: bytes | mmap, where: str | None) -> None:
    """Raise BadInput if a file is not encoded as a model, holds too much, or is not UTF-8.

    Args:
        data: the file.
        where: its name.
    """
    open_ends = [(len(data), _fields(onnx.ModelProto.DESCRIPTOR))]
    position, entries = 0, 0
    try:
        while open_ends:
            end, fields = open_ends[-1]
            if position == end:
                open_ends.pop()
                continue
            tag, position = data[position], position + 1
            if tag > 127:
                tag, position = _varint(data, position - 1)
            kind = tag & 7
            if kind == _SIZED:
                size, position = data[position], position + 1
                if size > 127:
                    size, position = _varint(data, position - 1)
                if size > end - position:
                    raise BadInput("the file is cut off", where, "fetch the file again")
                counts, inner, is_text = fields.get(tag >> 3, _UNCOUNTED)
                entries += counts
                if inner is not None and (size or len(open_ends) == DEEPEST):
                    open_ends.append((position + size, _fields(inner)))
                elif size:  # files of millions of empty parts are refused soon
                    if is_text:
                        data[position : position + size].decode()
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
    except UnicodeDecodeError as error:
        raise _not_text(where) from error


def check_texts(message: Any, where: str | None) -> None:
    """Raise BadInput if a text anywhere in a message is not UTF-8.

    Args:
        message: a message of Protocol Buffers.
        where: the name of the model in messages.
    """
    pending = [message]
    while pending:
        for field, value in pending.pop().ListFields():
            values = value if field.is_repeated else (value,)
            if field.message_type is not None:
                pending.extend(values)
            elif field.type == FieldDescriptor.TYPE_STRING:
                try:
                    for text in values:
                        text.encode()
                except UnicodeError as error:
                    raise _not_text(where) from error


def _not_text(where: str | None) -> BadInput:
    return BadInput("a text in the model is not UTF-8", where, "export the model again")


def _not_a_model(where: str | None) -> BadInput:
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
def _fields(message: Descriptor) -> _Fields:
    """Return, per field number, whether it counts, its message type, and whether it is a text."""
    found: _Fields = {}
    for field in message.fields:
        if field.message_type is not None:
            found[field.number] = True, field.message_type, False
        elif field.type in _TEXT:
            found[field.number] = True, None, field.type == FieldDescriptor.TYPE_STRING
    return found
