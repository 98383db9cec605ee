"""``mpcompile gradients``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app
from mpcompile.errors import BadInput


@app.command
def gradients(
    source: Source,
    *,
    batches: Annotated[
        int, Parameter(help="The most batches to measure, where --ranges gives no measurement.")
    ] = 8,
    steps: Annotated[int, Parameter(help="Steps whose updates are looked at.")] = 8,
    figure: Annotated[
        Path | None, Parameter(help="A .svg or .png of the histogram, by matplotlib.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace that file.", negative=())] = False,
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show gradients by their exponents, what FP16 loses of them, and the loss scale for them.

    It also says how many updates would vanish if the weights had no FP32 masters.
    """
    del debug
    if source.endswith(".onnx"):
        raise BadInput(f"{source} has no loss and no optimizer", fix="name a program that has both")
    command = import_module("mpcompile.commands.gradients")
    wanted = command.Wanted(batches, steps, figure, force, json)
    command.gradients(source, flags.given(), flags.plan, flags.measured(), wanted)
