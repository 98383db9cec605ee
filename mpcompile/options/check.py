"""Options of ``mpcompile check``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class CheckOptions:
    """What is compared, and how near it must be."""

    tolerance: Annotated[
        float, Parameter(help="The largest accepted relative error of a tensor.")
    ] = 0.25
    batches: Annotated[int, Parameter(help="The number of batches to compare.")] = 1
    steps: Annotated[int, Parameter(help="Training steps before the comparison.")] = 0
    all: Annotated[bool, Parameter(help="Print all tensors, in execution order.", negative=())] = (
        False
    )
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
