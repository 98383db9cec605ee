"""Options of ``mpcompile inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class InspectOptions:
    """Which nodes are shown, and how."""

    module: Annotated[
        tuple[str, ...],
        Parameter(
            help="Only modules of this path, and those in them (wildcards; repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    op: Annotated[
        tuple[str, ...],
        Parameter(help="Only this op (wildcards; repeatable).", negative=(), show_default=False),
    ] = ()
    in_precision: Annotated[
        tuple[Literal["f16", "bf16", "f32", "both", "other"], ...],
        Parameter(
            name="--in",
            help="Only what is in this precision (repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    stage: Annotated[
        tuple[Literal["forward", "backward", "update"], ...],
        Parameter(help="Only this stage (repeatable).", negative=(), show_default=False),
    ] = ()
    all: Annotated[bool, Parameter(help="Cut no table short.", negative=())] = False
    format: Annotated[
        Literal["text", "csv"], Parameter(help="Tables, or a comma-separated row a node.")
    ] = "text"
    model_explorer: Annotated[
        Path | None, Parameter(help="A folder for files that Model Explorer reads.")
    ] = None
    check: Annotated[
        Path | None, Parameter(help="What `mpcompile check --json` wrote, for its errors there.")
    ] = None
    force: Annotated[bool, Parameter(help="Replace those files.", negative=())] = False
    device: Annotated[
        Literal["h100", "h200", "a100", "v100", "cpu", "all"],
        Parameter(help="Whose bound; cpu is measured here, all compares the others."),
    ] = "h100"
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
