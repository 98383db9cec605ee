"""``mpcompile tune``: which ops to return to FP32 so that a tolerance or a score holds."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.warnings import warnings_on_one_line
from mpcompile.errors import BadInput, printable
from mpcompile.plan.dataflow import Where
from mpcompile.plan.ranges import Ranges
from mpcompile.program.random_state import seed_all
from mpcompile.program.workload import Workload, epochs, load, load_function, source_name
from mpcompile.search.judges import Judge, ScoreJudge, ToleranceJudge
from mpcompile.search.trial_log import TrialLog
from mpcompile.search.tune import (
    SEED,
    Asked,
    Candidates,
    Tuned,
    asked_in_words,
    candidates,
    score_in_full_precision,
    tune,
)
from mpcompile.settings import Settings, find_settings
from mpcompile.show.summary import numbers_table

_TOLERANCE = 0.25
_LOSS_OF_SCORE = 0.01


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        tolerance: of loss and gradients, or the part of FP32's score that may be lost; None: the
            default.
        function: the user's own, as ``file.py:name`` or ``module:name``.
        score: what it has to return; None: what FP32 scores, less the tolerance.
        steps: training steps before measuring.
        batches: how many are measured.
        output: the file of overrides.
        resume: whether to take up the trials beside it.
        force: whether to replace files.
        json_to: where the document goes.
    """

    tolerance: float | None
    function: str | None
    score: float | None
    steps: int
    batches: int
    output: Path | None
    resume: bool
    force: bool
    json_to: str | None


def tune_source(
    source: str,
    flags: dict[str, Any],
    ranges: Ranges | None,
    flag_words: tuple[str, ...],
    wanted: Wanted,
) -> None:
    """Search, print what was found, and write it as overrides.

    Args:
        source: a program.
        flags: settings given on the command line.
        ranges: what was measured.
        flag_words: the same and the ranges, as they were typed.
        wanted: what is searched.

    Raises:
        BadInput: an argument is wrong.
        CheckFailed: it does not hold in FP32 either.
    """
    _check(source, wanted)
    console = Console(stderr=wanted.json_to == "-", highlight=False)
    output = wanted.output or Path(f"{source_name(source)}.tune.toml")
    trials = output.with_suffix(".jsonl")
    check_file(output, wanted.force)
    check_file(trials, wanted.force or wanted.resume)
    settings = find_settings(Path.cwd()).over(flags)
    # A program that does not seed its weights starts from the same ones all the same.
    seed_all(SEED)
    workload = load(source)
    asked = _asked(workload, settings, ranges, wanted)
    with console.status("planning"), warnings_on_one_line():
        found = candidates(workload, asked)
    function = load_function(wanted.function) if wanted.function else None
    words = asked_in_words(workload, asked, found, _judge_in_words(wanted))
    log = (TrialLog.resume if wanted.resume else TrialLog.begin)(trials, words)
    known = len(log.trials)
    if known:
        console.print(f"took up {known} trials of {trials}", markup=False)

    def say(sentence: str) -> None:
        console.print(printable(sentence), markup=False, soft_wrap=True)

    try:
        with console.status("searching"):
            judge = _judge(workload, asked, settings, log, function, wanted)
            tuned = tune(workload, asked, found, judge, log, say)
    except KeyboardInterrupt:
        say(f"what was tried stands in {trials}; --resume goes on from there")
        raise
    names = [f"node:{item.op}" for item in tuned.returned]
    again = shlex.join(
        ["mpcompile", "run", source, *flag_words, *(word for n in names for word in ("--full", n))]
    )
    write_file(output, toml_text(source, tuned), force=wanted.force)
    _print(tuned, found, output, again, console)
    write_json(wanted.json_to, _document(source, output, tuned, found, again))


def _check(source: str, wanted: Wanted) -> None:
    if source.endswith(".onnx"):
        raise BadInput(f"{source} is an .onnx file", fix="give a program: tune trains it")
    for name, value, least in (("steps", wanted.steps, 0), ("batches", wanted.batches, 1)):
        if value < least:
            raise BadInput(f"--{name} is {value}", fix=f"give at least {least}")
    if wanted.tolerance is not None and not (
        isfinite(wanted.tolerance) and wanted.tolerance >= 0.0
    ):
        raise BadInput(f"--tolerance is {wanted.tolerance}", fix="give a number from 0 upward")
    if wanted.score is not None and wanted.function is None:
        raise BadInput("--score needs a function that scores", fix="give --eval file.py:function")
    if wanted.score is not None and wanted.tolerance is not None:
        raise BadInput(
            "--score and --tolerance both say what the score must be", fix="leave out one of them"
        )


def _asked(workload: Workload, settings: Settings, ranges: Ranges | None, wanted: Wanted) -> Asked:
    data = workload.data
    if wanted.function and data is not None and iter(data) is data:
        raise BadInput(
            "the workload's data can be read once only, and each trial reads it",
            workload.origin,
            "give data= a list, or an object that begins anew in each loop",
        )
    given = tuple(islice(epochs(workload), wanted.steps + wanted.batches))
    return Asked(settings.policy, settings.scale, ranges, settings.without, given, wanted.steps)


def _judge_in_words(wanted: Wanted) -> str:
    if wanted.function is None:
        return f"--tolerance {_tolerance(wanted):g}"
    if wanted.score is not None:
        return f"--eval {wanted.function} --score {wanted.score:g}"
    return f"--eval {wanted.function} --tolerance {_tolerance(wanted):g}"


def _tolerance(wanted: Wanted) -> float:
    if wanted.tolerance is not None:
        return wanted.tolerance
    return _LOSS_OF_SCORE if wanted.function else _TOLERANCE


def _judge(
    workload: Workload,
    asked: Asked,
    settings: Settings,
    log: TrialLog,
    function: Callable[..., Any] | None,
    wanted: Wanted,
) -> Judge:
    if function is None:
        return ToleranceJudge(_tolerance(wanted), asked.batches, asked.steps)
    if wanted.score is not None:
        return ScoreJudge(function, wanted.score, settings.backend)
    reference = score_in_full_precision(workload, asked, function, settings.backend, log)
    return ScoreJudge(function, reference - _tolerance(wanted) * abs(reference), settings.backend)


def toml_text(source: str, tuned: Tuned) -> str:
    """Return the overrides as ``[tool.mpcompile]`` of a TOML file, with what speaks for each."""
    lines = [f"# mpcompile tune {source}: {tuned.after}; {tuned.before} without these."]
    lines.append("# Copy them into [tool.mpcompile] of pyproject.toml.")
    lines += ["[tool.mpcompile]", "full = ["]
    for item in tuned.returned:
        name = json.dumps(f"node:{item.op}", ensure_ascii=False)
        error = f"error {item.before.error:.3g}, {item.after:.3g} in FP32"
        lines.append(f"  {name},  # {item.kind}, {error}  {_place(item.where)}".rstrip())
    return "\n".join(map(printable, [*lines, "]"])) + "\n"


def _print(tuned: Tuned, found: Candidates, output: Path, again: str, console: Console) -> None:
    count = len(found.ops)
    if tuned.returned:
        title = f"return to FP32: {len(tuned.returned)} of {count} ops"
        table = numbers_table(title, "op", "error in 16 bits", "in FP32")
        table.add_column("where", overflow="fold")
        for item in tuned.returned:
            texts = (f"{number:.3g}" for number in (item.before.error, item.after))
            table.add_row(
                Text(printable(f"{item.op} ({item.kind})")), *texts, Text(_place(item.where))
            )
        console.print(table)
        console.print(f"without them {printable(tuned.before)}", markup=False, soft_wrap=True)
        console.print(f"with them {printable(tuned.after)}", markup=False, soft_wrap=True)
    else:
        said = f"nothing has to be returned to FP32; with {count} ops in 16 bits"
        console.print(f"{said} {printable(tuned.before)}", markup=False, soft_wrap=True)
    console.print(f"{tuned.trials} trials, {tuned.seconds:.1f} s; wrote {output}", markup=False)
    if tuned.returned:
        console.print(printable(again), markup=False, soft_wrap=True)


def _place(where: Where) -> str:
    """Return a place for a person; a file below the working folder reads better without that."""
    return printable(str(where).replace(f"{Path.cwd()}{os.sep}", ""))


def _document(
    source: str, output: Path, tuned: Tuned, found: Candidates, again: str
) -> dict[str, Any]:
    return {
        "source": source,
        "output": str(output),
        "full": [f"node:{item.op}" for item in tuned.returned],
        "ops": [
            {
                "op": item.op,
                "kind": item.kind,
                "module": item.where.module,
                "file": item.where.file,
                "line": item.where.line,
                "error": _finite(item.before.error),
                "own": _finite(item.before.own),
                "vanished": item.before.vanished,
                "error_in_fp32": _finite(item.after),
            }
            for item in tuned.returned
        ],
        "candidates": len(found.ops),
        "without": tuned.before,
        "with": tuned.after,
        "trials": tuned.trials,
        "seconds": round(tuned.seconds, 3),
        "command": again,
    }


def _finite(number: float) -> float | None:
    """Return a number that JSON can hold; None stands for an infinite error."""
    return number if isfinite(number) else None
