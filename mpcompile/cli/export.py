"""``mpcompile export``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app


@app.command
def export(
    source: Source,
    *,
    to: Annotated[Path, Parameter(help="The .onnx file to write.")],
    kind: Annotated[
        Literal["step", "forward"] | None,
        Parameter(
            help="The whole training step, or the model for inference; default: forward for "
            "forward.onnx and for a program without a loss."
        ),
    ] = None,
    dynamic: Annotated[
        bool, Parameter(help="Leave the batch size of a forward pass open.", negative=())
    ] = False,
    flags: Flags = NO_FLAGS,
    force: Annotated[bool, Parameter(help="Replace what is there.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Write a program's training step, or its model for inference, as an ONNX graph.

    Beside a step, train.onnx, stand train.json and train.safetensors; stock ONNX Runtime trains it.
    """
    del debug
    command = import_module("mpcompile.commands.export")
    command.export(
        source, to, kind, dynamic, flags.given(), flags.plan, flags.measured(), force, json
    )
