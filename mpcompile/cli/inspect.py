"""``mpcompile inspect``."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app


@app.command
def inspect(
    source: Source,
    *,
    device: Annotated[
        Literal["h100", "h200", "a100", "v100", "cpu", "all"],
        Parameter(help="Whose bound; cpu is measured here, all compares the others."),
    ] = "h100",
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Print what each pass changed and the least time that a step can take on a device."""
    del debug
    command = import_module("mpcompile.inspect_command")
    command.inspect(source, device, flags.given(), flags.plan, flags.measured(), json)
