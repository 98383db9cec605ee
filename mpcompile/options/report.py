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
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.report.html.")
    ] = None
    log: Annotated[
        Path | None, Parameter(help="The log of a run, a JSON object a step, to plot.")
    ] = None
    check: Annotated[
        Path | None, Parameter(help="What a check measured of each node, to show beside it.")
    ] = None
    flags: PlanFlags = NO_FLAGS
    force: Annotated[bool, Parameter(help="Replace the file.", negative=())] = False
    json: Json = None
    debug: Debug = False
