"""The arguments that commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Source = Annotated[
    str,
    Parameter(help="A Python file that defines workload(), package.module:name, or an .onnx file."),
]
ProgramSource = Annotated[
    str, Parameter(help="A Python file that defines workload(), or package.module:name.")
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
        help="Also write the result as one JSON document to this file, or to stdout with '-'.",
        allow_leading_hyphen=True,
    ),
]
Check = Annotated[
    bool, Parameter(help="Compare the first batch, or an .onnx model's outputs, with FP32.")
]
Debug = Annotated[bool, Parameter(help="Show the traceback of an error.", negative=())]
"""`mpcompile.cli.leave`, which ends every command, reads this flag; no command does."""
