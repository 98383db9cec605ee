"""The user's line in the text of a stack trace of a graph, and the name of its file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

# With the separator, because torchvision and torch_geometric count as the user's own packages.
_FOREIGN = tuple(f"{files(package)}{os.sep}" for package in ("torch", "mpcompile"))


def is_foreign(path: str) -> bool:
    """Whether a file belongs to torch or mpcompile."""
    return path.startswith((*_FOREIGN, "<"))


def line_now() -> str | None:
    """Return ``file:line`` of the deepest frame outside torch and mpcompile, or None."""
    frame = inspect.currentframe()
    while frame is not None and is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else None


@cache
def users_line(stack: str, is_foreign: Callable[[str], bool]) -> tuple[str, int]:
    """Return file and line of the deepest frame in the user's code; ``("", 0)`` without one.

    Args:
        stack: lines such as ``File "model.py", line 3, in forward``, outermost first.
        is_foreign: whether a file is not the user's.
    """
    file, line = "", 0
    for text in stack.splitlines():
        text = text.strip()
        if text.startswith('File "'):
            path, _, rest = text[6:].partition('", line ')
            number = rest.split(",")[0]
            if number.isdecimal() and not is_foreign(path):
                file, line = path, int(number)
    return file, line


def relative(file: str) -> str:
    """Return a path relative to the working folder, if it is inside that folder."""
    return file.removeprefix(f"{Path.cwd()}{os.sep}")
