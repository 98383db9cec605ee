"""``mpcompile explain``."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, AnySource, Debug, Flags, Json, app


@app.command
def explain(
    source: AnySource,
    *names: Annotated[
        str, Parameter(help="Ops of the plan, nodes of the step, or paths of modules.")
    ],
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Say why a node or a module is in its precision, and what the other choice would cost."""
    del debug
    command = import_module("mpcompile.commands.explain")
    command.explain_source(source, names, flags.given(), flags.plan, flags.measured(), json)
