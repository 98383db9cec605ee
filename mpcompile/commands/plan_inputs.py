"""The inputs of the planner: settings, overridden by flags; a plan; measured ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mpcompile.errors import BadInput
from mpcompile.options.plan_flags import PlanFlags
from mpcompile.plan.plan import Plan, read_plan
from mpcompile.plan.ranges import Ranges, read_ranges
from mpcompile.settings import Settings, find_settings


@dataclass(frozen=True)
class PlanInputs:
    """The inputs that decide precisions and passes.

    Attributes:
        settings: those of the project, overridden by the flags.
        plan_file: the file of ``--plan``; its decisions come before everything else.
        ranges: the ranges of ``--ranges``, with the given margin.
        verify: whether a captured program is compared with the program itself.
    """

    settings: Settings
    plan_file: Path | None = None
    ranges: Ranges | None = None
    verify: bool = True

    @cached_property
    def plan(self) -> Plan | None:
        """The given plan, read on first use: a source that takes no plan is reported first."""
        return read_plan(self.plan_file) if self.plan_file else None


def read_plan_inputs(flags: PlanFlags) -> PlanInputs:
    """Read the ranges that flags name, and the settings of the working folder.

    This needs no torch, so that a wrong flag or a missing file is reported at once.

    Raises:
        BadInput: a flag or a file is wrong.
    """
    ranges = _ranges(flags)
    settings = find_settings(Path.cwd()).over(flags.given())
    if ranges is not None and settings.precision_budget is not None:
        ranges = replace(ranges, precision_budget=settings.precision_budget)
    return PlanInputs(settings, flags.plan, ranges, flags.verify)


def _ranges(flags: PlanFlags) -> Ranges | None:
    margin = flags.margin
    if flags.ranges is None:
        if margin is not None or flags.release:
            raise BadInput("--margin and --release need --ranges", fix="run mpcompile calibrate")
        if flags.precision_budget is not None:
            raise BadInput("--precision-budget needs --ranges", fix="run mpcompile calibrate")
        return None
    ranges = read_ranges(flags.ranges)
    if margin is not None and not 0 <= margin <= 15:
        raise BadInput(f"--margin is {margin}", fix="give 0 to 15 bits")
    bits = ranges.margin_bits if margin is None else margin
    return replace(ranges, margin_bits=bits, release=flags.release or ranges.release)
