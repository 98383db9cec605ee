"""``mpcompile tune``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app
from mpcompile.errors import BadInput


@Parameter(name="*")
@dataclass(frozen=True)
class TuneFlags:
    """What has to hold, and how it is measured."""

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


_DEFAULTS = TuneFlags()


@app.command
def tune(
    source: Source,
    *,
    search: TuneFlags = _DEFAULTS,
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Find the fewest ops to return to FP32 so that a tolerance or a score holds."""
    del debug
    if flags.plan is not None:
        raise BadInput(
            "the decisions of --plan hold before every override",
            fix="leave it out, and give overrides or --ranges",
        )
    command = import_module("mpcompile.commands.tune")
    wanted = command.Wanted(
        search.tolerance,
        search.eval,
        search.score,
        search.steps,
        search.batches,
        search.output,
        search.resume,
        search.force,
        json,
    )
    command.tune_source(source, flags.given(), flags.measured(), flags.words(), wanted)
