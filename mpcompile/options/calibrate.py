"""Options of ``mpcompile calibrate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json


@Parameter(name="*")
@dataclass(frozen=True)
class CalibrateOptions:
    """How much is measured, and where the ranges go."""

    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The file to write; default: NAME.ranges.json."),
    ] = None
    batches: Annotated[int, Parameter(help="The largest number of batches to run.")] = 8
    data: Annotated[
        Path | None, Parameter(help="For an .onnx model: an .npz file with its inputs by name.")
    ] = None
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative=())] = False
    json: Json = None
    debug: Debug = False
