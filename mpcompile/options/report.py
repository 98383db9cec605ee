"""Options of ``mpcompile report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class ReportOptions:
    """What the report shows, and where it goes."""

    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The file to write; default: NAME.report.html."),
    ] = None
    log: Annotated[Path | None, Parameter(help="A file of `mpcompile run --log`, to plot it.")] = (
        None
    )
    check: Annotated[
        Path | None,
        Parameter(help="A file of `mpcompile check --json`, to show its errors at the nodes."),
    ] = None
    flags: PlanFlags = NO_FLAGS
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative=())] = False
    json: Json = None
    debug: Debug = False
