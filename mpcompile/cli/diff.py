"""``mpcompile diff``."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import Debug, Json, app

Side = Annotated[
    str,
    Parameter(
        help="A plan.json, a folder that mpcompile has written, a program or an .onnx file; behind "
        "the last two perhaps @LEVEL or @FILE.toml, the policy to plan by."
    ),
]


@app.command
def diff(old: Side, new: Side, /, *, json: Json = None, debug: Debug = False) -> int:
    """Say in words what changed between two plans, programs, models or policies.

    Exit code 0: both do the same to the same graph; 1: they differ. Reasons and source lines alone
    are no difference. `mpcompile diff model.py@careful model.py@paper` compares two policies.
    """
    del debug
    code: int = import_module("mpcompile.commands.diff").diff(old, new, json)
    return code
