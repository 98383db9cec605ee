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
            help="The largest relative error of the loss and of each gradient against FP64, by "
            "default 0.25; with --eval the part of FP32's score that may be lost, by default 0.01."
        ),
    ] = None
    eval: Annotated[
        str | None,
        Parameter(
            help="A function of yours, file.py:name or module:name, which gets the compiled step "
            "and a fresh workload and returns a number; higher is better."
        ),
    ] = None
    score: Annotated[
        float | None, Parameter(help="What it must return; default: by FP32 and --tolerance.")
    ] = None
    steps: Annotated[int, Parameter(help="Training steps before measuring.")] = 0
    batches: Annotated[int, Parameter(help="How many batches are measured.")] = 2
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File; default: NAME.tune.toml.")
    ] = None
    resume: Annotated[
        bool, Parameter(help="Go on with the trials in NAME.tune.jsonl.", negative=())
    ] = False
    force: Annotated[bool, Parameter(help="Replace the files.", negative=())] = False
    flags: PlanFlags = NO_FLAGS
    json: Json = None
    debug: Debug = False
