"""Load a program that a command line names, and transform it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mpcompile.command_line import warnings_on_one_line
from mpcompile.loop import PLAIN, Loop
from mpcompile.pipeline import Transformed
from mpcompile.pipeline import transform as transform_workload
from mpcompile.plan import read_plan
from mpcompile.ranges import Ranges
from mpcompile.settings import Settings
from mpcompile.workload import load


def transform_source(
    source: str,
    settings: Settings,
    plan: Path | None,
    ranges: Ranges | None,
    console: Console,
    loop: Loop = PLAIN,
) -> Transformed:
    """Load a program and transform it by settings, with each warning on one line."""
    given = read_plan(plan) if plan else None
    workload = load(source)
    with console.status("transforming"), warnings_on_one_line():
        return transform_workload(
            workload, settings.policy, settings.scale, given, ranges, settings.without, loop
        )
