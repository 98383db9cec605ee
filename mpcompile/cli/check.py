"""``mpcompile check``."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app


@app.command
def check(
    source: Source,
    *,
    tolerance: Annotated[
        float, Parameter(help="The largest error of a tensor, as a part of its size.")
    ] = 0.25,
    batches: Annotated[int, Parameter(help="Batches to compare on.")] = 1,
    steps: Annotated[int, Parameter(help="Training steps before that.")] = 0,
    all: Annotated[bool, Parameter(help="Print every tensor, in order.", negative=())] = False,
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Compare every tensor of a step, forward and backward, with FP64 and with eager autocast.

    Exit code 1 with the first node whose error is over the tolerance and more than rounding alone
    explains, or that is not finite.
    """
    del debug
    command = import_module("mpcompile.commands.check")
    command.check(
        source, flags.given(), flags.plan, flags.measured(), tolerance, batches, steps, all, json
    )
