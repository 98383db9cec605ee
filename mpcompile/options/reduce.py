"""Options of ``mpcompile reduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class ReduceOptions:
    """Which failure is looked for, and where the script goes."""

    node: Annotated[
        str | None, Parameter(help="The failing node of the step; default: the first that fails.")
    ] = None
    tolerance: Annotated[
        float, Parameter(help="The largest accepted relative error of a tensor against FP64.")
    ] = 0.25
    steps: Annotated[int, Parameter(help="Training steps before the search.")] = 0
    batches: Annotated[int, Parameter(help="The largest number of batches to search.")] = 1
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The script to write; default: NAME.reduced.py."),
    ] = None
    force: Annotated[bool, Parameter(help="Replace existing files.", negative=())] = False
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
