"""``mpcompile calibrate``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import Debug, Json, Source, app
from mpcompile.errors import BadInput


@app.command
def calibrate(
    source: Source,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.ranges.json.")
    ] = None,
    batches: Annotated[int, Parameter(help="The most batches to run.")] = 8,
    data: Annotated[
        Path | None, Parameter(help="Inputs of an .onnx model: an .npz with arrays by name.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace the file.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Run a program in FP32 on its own data, or a model on --data, and measure every tensor."""
    del debug
    if source.endswith(".onnx"):
        command = import_module("mpcompile.commands.onnx_rewrite")
        command.calibrate(Path(source), output, data, batches, force, json)
        return
    if data is not None:
        raise BadInput(f"{source} is no .onnx file", fix="leave out --data: it has its own")
    import_module("mpcompile.commands.calibrate").calibrate(source, output, batches, force, json)
