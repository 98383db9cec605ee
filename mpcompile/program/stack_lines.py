"""The user's line in the text of a stack trace of a graph, and the name of its file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path


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
