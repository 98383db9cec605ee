"""Options of ``mpcompile explain``."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class ExplainOptions:
    """By what a program is planned, and where the sentences go."""

    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
