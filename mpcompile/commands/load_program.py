"""Load a program that a command line names, and transform it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mpcompile.commands.warnings import warnings_on_one_line
from mpcompile.pipeline import transform as transform_workload
from mpcompile.plan.plan import read_plan
from mpcompile.plan.ranges import Ranges
from mpcompile.program.workload import load
from mpcompile.settings import Settings
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.transformed import Choices, Transformed


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
            workload,
            Choices(
                policy=settings.policy,
                loss_scale=settings.scale,
                plan=given,
                ranges=ranges,
                without=settings.without,
                loop=loop,
            ),
        )
