"""Options of ``mpcompile model.py`` and ``mpcompile model.onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Check, Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class OnnxFlags:
    """What only a model as an ``.onnx`` file takes."""

    data: Annotated[
        Path | None,
        Parameter(
            help="For an .onnx model: an .npz file with its inputs by name; default: random inputs."
        ),
    ] = None
    target: Annotated[
        Literal["cuda", "cpu", "any"],
        Parameter(
            help="For an .onnx model: where it runs; ops without a 16-bit kernel stay in FP32."
        ),
    ] = "any"
    free_io: Annotated[
        bool,
        Parameter(
            help="For an .onnx model: its inputs and outputs may become 16 bits.", negative=()
        ),
    ] = False
    tolerance: Annotated[
        float | None,
        Parameter(
            help=(
                "For an .onnx model: the largest error of an output, relative to its largest "
                "number."
            )
        ),
    ] = None


NO_ONNX_FLAGS = OnnxFlags()


@Parameter(name="*")
@dataclass(frozen=True)
class TransformOptions:
    """How a program or a model is transformed, and where it goes."""

    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"],
            help="The folder or .onnx file to write; default: NAME.mp or NAME.PRECISION.onnx.",
        ),
    ] = None
    flags: PlanFlags = NO_FLAGS
    onnx: OnnxFlags = NO_ONNX_FLAGS
    force: Annotated[bool, Parameter(help="Replace existing output.", negative=())] = False
    check: Check = True
    json: Json = None
    debug: Debug = False
