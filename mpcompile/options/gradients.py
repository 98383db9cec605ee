"""Options of ``mpcompile gradients``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class GradientsOptions:
    """How much is measured, and where it goes."""

    batches: Annotated[
        int, Parameter(help="The most batches to measure, where --ranges gives no measurement.")
    ] = 8
    steps: Annotated[int, Parameter(help="Steps whose updates are looked at.")] = 8
    figure: Annotated[
        Path | None, Parameter(help="A .svg or .png of the histogram, by matplotlib.")
    ] = None
    force: Annotated[bool, Parameter(help="Replace that file.", negative=())] = False
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
