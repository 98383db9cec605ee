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
        int, Parameter(help="Without --ranges: the largest number of batches to measure.")
    ] = 8
    steps: Annotated[int, Parameter(help="Training steps whose updates are examined.")] = 8
    figure: Annotated[
        Path | None, Parameter(help="A .svg or .png file for the histogram; needs matplotlib.")
    ] = None
    force: Annotated[bool, Parameter(help="Replace an existing figure.", negative=())] = False
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
