"""Options of ``mpcompile tune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class TuneOptions:
    """What has to hold, how it is measured, and where the overrides go."""

    tolerance: Annotated[
        float | None,
        Parameter(
            help="The largest accepted relative error of the loss and of each gradient against "
            "FP64 (default 0.25); with --eval the share of FP32's score that may be lost (default "
            "0.01)."
        ),
    ] = None
    eval: Annotated[
        str | None,
        Parameter(
            help="Your function, file.py:name or module:name, which takes the compiled step "
            "and a fresh workload and returns a score; higher is better."
        ),
    ] = None
    score: Annotated[
        float | None,
        Parameter(help="The least accepted score; default: FP32's score less --tolerance."),
    ] = None
    steps: Annotated[int, Parameter(help="Training steps before each measurement.")] = 0
    batches: Annotated[int, Parameter(help="The number of batches to measure.")] = 2
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The file to write; default: NAME.tune.toml."),
    ] = None
    resume: Annotated[
        bool, Parameter(help="Continue with the trials in NAME.tune.jsonl.", negative=())
    ] = False
    force: Annotated[bool, Parameter(help="Replace existing files.", negative=())] = False
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
