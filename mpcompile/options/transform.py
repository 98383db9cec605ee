"""Options of ``mpcompile model.py`` and ``mpcompile model.onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class OnnxFlags:
    """What only a model as an ``.onnx`` file takes."""

    data: Annotated[
        Path | None,
        Parameter(help="An .npz with inputs by name; for an .onnx model; default: made up."),
    ] = None
    target: Annotated[
        Literal["cuda", "cpu", "any"],
        Parameter(help="Where an .onnx model shall run; what has no 16-bit kernel stays FP32."),
    ] = "any"
    free_io: Annotated[
        bool,
        Parameter(help="Inputs and outputs of an .onnx model may be 16 bits.", negative=()),
    ] = False
    tolerance: Annotated[
        float | None,
        Parameter(help="Largest error of an .onnx model's outputs, as a part of their largest."),
    ] = None


NO_ONNX_FLAGS = OnnxFlags()


@Parameter(name="*")
@dataclass(frozen=True)
class TransformOptions:
    """How a program or a model is transformed, and where it goes."""

    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Folder; default: NAME.mp here.")
    ] = None
    flags: PlanFlags = NO_FLAGS
    onnx: OnnxFlags = NO_ONNX_FLAGS
    force: Annotated[bool, Parameter(help="Replace what is there.", negative=())] = False
    json: Json = None
    debug: Debug = False
