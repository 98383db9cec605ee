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
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.ranges.json.")
    ] = None
    batches: Annotated[int, Parameter(help="The most batches to run.")] = 8
    data: Annotated[
        Path | None, Parameter(help="Inputs of an .onnx model: an .npz with arrays by name.")
    ] = None
    force: Annotated[bool, Parameter(help="Replace the file.", negative=())] = False
    json: Json = None
    debug: Debug = False
