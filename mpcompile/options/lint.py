"""Options of ``mpcompile lint``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class LintOptions:
    """Which findings are wanted, and how they are printed."""

    select: Annotated[
        tuple[str, ...],
        Parameter(
            help="Rules by id or its beginning (MP1, MP201 or ALL; repeatable, or with commas).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    ignore: Annotated[
        tuple[str, ...],
        Parameter(help="Rules to leave out; the longer id wins.", negative=(), show_default=False),
    ] = ()
    format: Annotated[
        Literal["text", "github", "sarif", "json"], Parameter(help="What is printed.")
    ] = "text"
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="A file for that, not stdout.")
    ] = None
    baseline: Annotated[
        Path | None, Parameter(help="A file of known findings, which are not found again.")
    ] = None
    write_baseline: Annotated[
        bool, Parameter(help="Write that file: all that is found is known.", negative=())
    ] = False
    exit_zero: Annotated[bool, Parameter(help="Exit with 0 whatever is found.", negative=())] = (
        False
    )
    flags: PlanFlags = NO_FLAGS
    rules: Annotated[bool, Parameter(help="List the rules.", negative=())] = False
    explain: Annotated[str | None, Parameter(help="Print the page of a rule: MP103.")] = None
    json: Json = None
    debug: Debug = False
