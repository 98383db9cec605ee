"""The arguments that commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

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
