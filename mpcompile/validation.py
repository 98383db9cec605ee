"""What pydantic finds wrong with a document, said in one sentence."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

from mpcompile.errors import did_you_mean

_LONGEST = 60


def sentence(error: ValidationError, known: Collection[str] = ()) -> str:
    """Return the first thing that is wrong, with its path, such as ``decisions[3].stores``.

    Args:
        error: what pydantic raised.
        known: the names of the document's fields, to find the one that was meant.
    """
    first = error.errors(include_url=False)[0]
    path, kind, message = _path(first["loc"]), first["type"], first["msg"]
    if kind == "json_invalid":
        return f"this is not JSON ({message.removeprefix('Invalid JSON: ')})"
    if kind == "missing":
        return f"{path} is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"there is no {path}{did_you_mean(path, known)}"
    if path and not message.startswith("Input should"):
        message = f"{path}: {message.removeprefix('Value error, ')}"
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
