"""``mpcompile diff``."""

from __future__ import annotations

from importlib import import_module

from mpcompile.cli.app import Debug, Json, PlanPath, app


@app.command
def diff(old: PlanPath, new: PlanPath, /, *, json: Json = None, debug: Debug = False) -> int:
    """Say in words what changed between two plans.

    Exit code 0: both do the same to the same graph; 1: they differ. Reasons and source lines alone
    are no difference.
    """
    del debug
    code: int = import_module("mpcompile.plan_commands").diff(old, new, json)
    return code
