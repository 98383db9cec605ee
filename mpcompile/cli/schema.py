"""``mpcompile schema``."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.cli.app import Debug, app


@app.command
def schema(
    document: Annotated[
        Literal["settings", "plan"] | None, Parameter(help="Which one; default: both.")
    ] = None,
    *,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of the settings in pyproject.toml and of plan.json."""
    del debug
    import_module("mpcompile.commands.schema").schema(document)
