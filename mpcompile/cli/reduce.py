"""``mpcompile reduce``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app
from mpcompile.errors import BadInput


@Parameter(name="*")
@dataclass(frozen=True)
class ReduceFlags:
    """Which failure, and where to look for it."""

    node: Annotated[
        str | None, Parameter(help="A node of the step; default: the first that fails.")
    ] = None
    tolerance: Annotated[
        float, Parameter(help="The error against FP64 that a tensor may have, as a part of it.")
    ] = 0.25
    steps: Annotated[int, Parameter(help="Training steps before that.")] = 0
    batches: Annotated[int, Parameter(help="The most batches to look at.")] = 1
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.reduced.py.")
    ] = None
    force: Annotated[bool, Parameter(help="Replace the file.", negative=())] = False


_NO_REDUCE_FLAGS = ReduceFlags()


@app.command
def reduce(
    source: Source,
    *,
    search: ReduceFlags = _NO_REDUCE_FLAGS,
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Write the smallest part of a step that fails in 16 bits, as a script that imports torch only.

    A failure is a number that is not finite though it is in FP64, or an error that rounding alone
    does not explain. The script exits with 1 while it shows the failure, with 0 once it is gone.
    """
    del debug
    if source.endswith(".onnx"):
        raise BadInput(f"{source} is an ONNX model", fix="reduce a training program")
    command = import_module("mpcompile.commands.reduce")
    wanted = command.Wanted(
        search.node,
        search.tolerance,
        search.steps,
        search.batches,
        search.output,
        search.force,
        json,
    )
    command.reduce_source(source, flags.given(), flags.plan, flags.measured(), wanted)
