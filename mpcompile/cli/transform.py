"""``mpcompile model.py`` and ``mpcompile model.onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app
from mpcompile.errors import BadInput


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


_NO_ONNX_FLAGS = OnnxFlags()


@app.default
def transform(
    source: Source,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Folder; default: NAME.mp here.")
    ] = None,
    flags: Flags = NO_FLAGS,
    onnx: OnnxFlags = _NO_ONNX_FLAGS,
    force: Annotated[bool, Parameter(help="Replace what is there.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Transform a training program, or a model as an .onnx file, and print what became of it.

    Of a program it writes plan and graphs into a folder; of an .onnx file the model in mixed
    precision, once that is valid and computes what the original does, and its plan.
    """
    del debug
    if source.endswith(".onnx"):
        command = import_module("mpcompile.commands.onnx_rewrite")
        command.rewrite(
            Path(source), output, flags.given(), flags.plan, flags.measured(), onnx, force, json
        )
        return
    if onnx != _NO_ONNX_FLAGS:
        raise BadInput(f"{source} is no .onnx file", fix="leave out --data, --target and the like")
    import_module("mpcompile.commands.transform").transform(
        source, output, flags.given(), flags.plan, flags.measured(), force, json
    )
