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
            help="Rules to apply, by id or its beginning (MP1, MP201 or ALL; repeatable, or with "
            "commas).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    ignore: Annotated[
        tuple[str, ...],
        Parameter(
            help="Rules to leave out; if --select matches too, the longer id decides.",
            negative=(),
            show_default=False,
        ),
    ] = ()
    format: Annotated[
        Literal["text", "github", "sarif", "json"], Parameter(help="The output format.")
    ] = "text"
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="A file for the output, instead of stdout."),
    ] = None
    baseline: Annotated[
        Path | None, Parameter(help="A file of known findings, which are not reported.")
    ] = None
    write_baseline: Annotated[
        bool, Parameter(help="Write all findings to the file of --baseline.", negative=())
    ] = False
    exit_zero: Annotated[
        bool, Parameter(help="Exit with 0 even if there are findings.", negative=())
    ] = False
    flags: PlanFlags = NO_FLAGS
    rules: Annotated[bool, Parameter(help="List the rules and exit.", negative=())] = False
    explain: Annotated[
        str | None, Parameter(help="Print the page of a rule, such as MP103, and exit.")
    ] = None
    json: Json = None
    debug: Debug = False
