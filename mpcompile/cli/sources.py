"""Where a program or a model comes from, and whether it is there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.errors import BadInput, did_you_mean

_FILES = (".py", ".onnx", ".json")


def is_there(_: object, source: str | None) -> None:
    """Refuse a file or a package that does not exist, before anything imports torch."""
    if not source or Path(source).exists():
        return
    if Path(source).suffix in _FILES or os.sep in source:
        raise BadInput("there is no such file", source, "check the path")
    package = source.partition(":")[0].partition(".")[0]
    try:
        known = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise BadInput(
            f"there is no file and no module {source!r}",
            fix="give the path of a .py file, or package.module:name",
        )


Source = Annotated[
    str,
    Parameter(
        help="A Python file that defines workload(), package.module:name, or an .onnx file.",
        validator=is_there,
    ),
]
ProgramSource = Annotated[
    str,
    Parameter(
        help="A Python file that defines workload(), or package.module:name.", validator=is_there
    ),
]
AnySource = Annotated[
    str,
    Parameter(
        help="A program, an .onnx file, a plan.json, or a folder that mpcompile has written.",
        validator=is_there,
    ),
]


def is_there_or_a_command(known: Iterable[str], source: str) -> None:
    """Say of a word that is no file and no module which command it may mean.

    Args:
        known: the names of commands.
        source: the word.
    """
    try:
        is_there(None, source)
    except BadInput as error:
        if Path(source).suffix or os.sep in source:
            raise
        error.what = f"there is no command, file or module {source!r}"
        error.what += did_you_mean(source, known)
        raise
