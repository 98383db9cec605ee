"""``mpcompile report``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, AnySource, Debug, Flags, Json, app


@app.command
def report(
    source: AnySource,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.report.html.")
    ] = None,
    log: Annotated[
        Path | None, Parameter(help="The log of a run, a JSON object a step, to plot.")
    ] = None,
    check: Annotated[
        Path | None, Parameter(help="What a check measured of each node, to show beside it.")
    ] = None,
    flags: Flags = NO_FLAGS,
    force: Annotated[bool, Parameter(help="Replace the file.", negative=())] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file that shows the graph before and after, its tables and plots.

    It needs no server and no network. Of a program it shows the step in FP32 and as transformed, of
    a model as it is and as it would be rewritten.
    """
    del debug
    command = import_module("mpcompile.commands.report")
    measured = command.Measured(log, check)
    command.report(
        source, output, flags.given(), flags.plan, flags.measured(), measured, force, json
    )
