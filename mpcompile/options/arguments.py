"""The arguments that commands share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.errors import BadInput

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
Json = Annotated[
    str | None,
    Parameter(
        name="--json",
        help="Also write the result as one JSON document to this file, or to stdout with '-'.",
        allow_leading_hyphen=True,
    ),
]
Check = Annotated[
    bool, Parameter(help="Compare the first batch, or an .onnx model's outputs, with FP32.")
]
Debug = Annotated[bool, Parameter(help="Show the traceback of an error.", negative=())]
"""`mpcompile.cli.leave`, which ends every command, reads this flag; no command does."""
