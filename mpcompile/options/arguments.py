"""The arguments that commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Source = Annotated[
    str, Parameter(help="A file that defines workload(), package.module:name, or an .onnx file.")
]
AnySource = Annotated[
    str,
    Parameter(
        help="A program, an .onnx file, a plan.json, or a folder that mpcompile has written."
    ),
]
Json = Annotated[
    str | None,
    Parameter(
        name="--json",
        help="Write one JSON document to a file, or to stdout with '-'.",
        allow_leading_hyphen=True,
    ),
]
Debug = Annotated[bool, Parameter(help="Show tracebacks.", negative=())]
"""`mpcompile.cli.leave`, which ends every command, reads this flag; no command does."""
