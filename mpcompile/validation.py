"""Read documents from untrusted sources, and say in one sentence what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mpcompile.errors import BadInput, did_you_mean

_LONGEST = 60
_LARGEST = 1 << 28  # bytes; the plan or the ranges of 100,000 ops take a quarter of that

T = TypeVar("T")


def read_document(path: Path, name: str, advice: str) -> bytes:
    """Return a file's bytes; raise BadInput if there is no file, or if it is too large.

    Args:
        path: the file.
        name: the kind of document that is expected, such as ``plan.json``.
        advice: what the user can do if the file is too large for it.
    """
    if not path.is_file():
        raise BadInput("there is no such file", str(path), f"give the path of a {name}")
    size = path.stat().st_size
    if size > _LARGEST:
        raise BadInput(
            f"the file has {size:,} bytes, which is too large for a {name}", str(path), advice
        )
    return path.read_bytes()


@cache
def format_of(kind: Any) -> TypeAdapter[Any]:
    """Return the reader and schema of a class of documents, which is made on first use."""
    return TypeAdapter(kind)


def read_json(kind: type[T], text: str | bytes, refusal: str, where: str | None, advice: str) -> T:
    """Return an untrusted JSON document as an object.

    Args:
        kind: a dataclass whose types say what the document may hold.
        text: the document.
        refusal: what is said before the reason, such as ``this is no view``.
        where: the file.
        advice: what the user can do.

    Raises:
        BadInput: the document does not fit the class.
    """
    try:
        document: T = format_of(kind).validate_json(text)  # type: ignore[arg-type] # has a hash
    except ValidationError as error:
        raise BadInput(f"{refusal}: {sentence(error)}", where, advice) from error
    return document


def without_head(file: Any, kind: type[T]) -> T:
    """Return a file's content without its head: the fields of ``kind`` only."""
    return kind(**{item.name: getattr(file, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def sentence(error: ValidationError, known: Collection[str] = ()) -> str:
    """Return the first error, with its path in the document, such as ``decisions[3].stores``.

    Args:
        error: the error of pydantic.
        known: the document's field names, to suggest the one that the user meant.
    """
    first = error.errors(include_url=False)[0]
    path, kind, message = _path(first["loc"]), first["type"], first["msg"]
    if kind == "json_invalid":
        return f"this is not JSON ({message.removeprefix('Invalid JSON: ')})"
    if kind == "missing":
        return f"{path} is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"there is no field {path}{did_you_mean(path, known)}"
    if kind == "value_error":  # a sentence of a class of ours
        return f"{path}{': ' * bool(path)}{message.removeprefix('Value error, ')}"
    if path and not message.startswith("Input should"):
        message = f"{path}: {message}"
    message = message.replace("Input should", f"{path or 'the document'} should")
    message = message.replace("a valid tuple", "a list").replace("a valid array", "a list")
    return f"{message}, not {short(first['input'])}"


def short(value: object) -> str:
    """Return a value as Python writes it, cut to a length that fits into a sentence."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{short(part)[1:-1]}"
    return text.removeprefix(".")
