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
            help="Show only modules of this path and modules inside them (wildcards; repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    op: Annotated[
        tuple[str, ...],
        Parameter(
            help="Show only this op (wildcards; repeatable).", negative=(), show_default=False
        ),
    ] = ()
    in_precision: Annotated[
        tuple[Literal["f16", "bf16", "f32", "both", "other"], ...],
        Parameter(
            name="--in",
            help="Show only nodes in this precision (repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    stage: Annotated[
        tuple[Literal["forward", "backward", "update"], ...],
        Parameter(help="Show only this stage (repeatable).", negative=(), show_default=False),
    ] = ()
    all: Annotated[bool, Parameter(help="Show all rows of each table.", negative=())] = False
    format: Annotated[
        Literal["text", "csv"], Parameter(help="Tables, or one comma-separated row per node.")
    ] = "text"
    model_explorer: Annotated[
        Path | None, Parameter(help="A folder to write files for Model Explorer to.")
    ] = None
    check: Annotated[
        Path | None,
        Parameter(
            help="With --model-explorer: a file of `mpcompile check --json`, for its errors."
        ),
    ] = None
    force: Annotated[
        bool, Parameter(help="Replace existing files in that folder.", negative=())
    ] = False
    device: Annotated[
        Literal["h100", "h200", "a100", "v100", "cpu", "all"],
        Parameter(
            help=(
                "Show the least step time on this device; cpu is measured here, all compares "
                "the others."
            )
        ),
    ] = "h100"
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
