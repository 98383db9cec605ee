"""``mpcompile tune``: which ops to return to FP32 so that a tolerance or a score holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, say, warnings_on_one_line
from mpcompile.errors import BadInput, from_here, printable
from mpcompile.options import TuneOptions
from mpcompile.plan.dataflow import Where
from mpcompile.program.random_state import seed_all
from mpcompile.program.workload import Workload, epochs, load, load_function, source_name
from mpcompile.search.judges import Judge, ScoreJudge, ToleranceJudge
from mpcompile.search.trial_log import TrialLog
from mpcompile.search.tune import (
    SEED,
    Candidates,
    Search,
    Tuned,
    candidates,
    score_in_full_precision,
    search_in_words,
)
from mpcompile.search.tune import tune as search_for
from mpcompile.settings import Settings
from mpcompile.show.summary import numbers_table

_TOLERANCE = 0.25
_LOSS_OF_SCORE = 0.01


def tune(source: str, options: TuneOptions, inputs: PlanInputs) -> None:
    """Search, print the ops that were found, and write them as overrides.

    Args:
        source: a program.
        options: the condition that must hold, and how it is measured.
        inputs: how it is planned if no op is returned to FP32; they contain no plan.

    Raises:
        BadInput: an argument is wrong.
        CheckFailed: the condition does not hold in FP32 either.
    """
    _check(source, options)
    console = open_terminal(options.json)
    output = options.output or Path(f"{source_name(source)}.tune.toml")
    trials = output.with_suffix(".jsonl")
    check_file(output, options.force)
    check_file(trials, options.force or options.resume)
    settings = inputs.settings
    # A program that does not seed its weights must still start from the same ones each time.
    seed_all(SEED)
    workload = load(source)
    search = _search(workload, options, inputs)
    with console.status("planning"), warnings_on_one_line():
        found = candidates(workload, search)
    function = load_function(options.eval) if options.eval else None
    words = search_in_words(workload, search, found, _judge_in_words(options))
    log = (TrialLog.resume if options.resume else TrialLog.begin)(trials, words)
    known = len(log.trials)
    if known:
        console.print(f"read {known} earlier trials from {trials}", markup=False)

    def tell(sentence: str) -> None:
        say(console, sentence)

    try:
        with console.status("searching"):
            judge = _judge(workload, search, settings, log, function, options)
            tuned = search_for(workload, search, found, judge, log, tell)
    except KeyboardInterrupt:
        tell(f"the finished trials are in {trials}; --resume continues the search")
        raise
    names = [f"node:{item.op}" for item in tuned.returned]
    again = shlex.join(
        [
            "mpcompile",
            "run",
            source,
            *options.flags.words(),
            *(word for n in names for word in ("--full", n)),
        ]
    )
    write_file(output, toml_text(source, tuned), force=options.force)
    _print(tuned, found, output, again, console)
    write_json(options.json, _document(source, output, tuned, found, again))


def _check(source: str, options: TuneOptions) -> None:
    if source.endswith(".onnx"):
        raise BadInput(f"{source} is an .onnx file, but tune trains", fix="give a program")
    for name, value, least in (("steps", options.steps, 0), ("batches", options.batches, 1)):
        if value < least:
            raise BadInput(f"--{name} is {value}", fix=f"give at least {least}")
    if options.tolerance is not None and not (
        isfinite(options.tolerance) and options.tolerance >= 0.0
    ):
        raise BadInput(f"--tolerance is {options.tolerance}", fix="give a number of at least 0")
    if options.score is not None and options.eval is None:
        raise BadInput(
            "--score needs a function that computes a score", fix="give --eval file.py:function"
        )
    if options.score is not None and options.tolerance is not None:
        raise BadInput(
            "--score and --tolerance both set the least score", fix="leave out one of them"
        )


def _search(workload: Workload, options: TuneOptions, inputs: PlanInputs) -> Search:
    data = workload.data
    if options.eval and data is not None and iter(data) is data:
        raise BadInput(
            "the workload's data can be read only once, but each trial reads it",
            workload.origin,
            "give data= a list, or an object that can be iterated more than once",
        )
    given = tuple(islice(epochs(workload), options.steps + options.batches))
    settings = inputs.settings
    return Search(
        settings.policy,
        settings.scale,
        inputs.ranges,
        settings.without,
        given,
        options.steps,
        inputs.verify,
    )


def _judge_in_words(options: TuneOptions) -> str:
    if options.eval is None:
        return f"--tolerance {_tolerance(options):g}"
    if options.score is not None:
        return f"--eval {options.eval} --score {options.score:g}"
    return f"--eval {options.eval} --tolerance {_tolerance(options):g}"


def _tolerance(options: TuneOptions) -> float:
    if options.tolerance is not None:
        return options.tolerance
    return _LOSS_OF_SCORE if options.eval else _TOLERANCE


def _judge(
    workload: Workload,
    search: Search,
    settings: Settings,
    log: TrialLog,
    function: Callable[..., Any] | None,
    options: TuneOptions,
) -> Judge:
    if function is None:
        return ToleranceJudge(_tolerance(options), search.batches, search.steps)
    if options.score is not None:
        return ScoreJudge(function, options.score, settings.backend)
    reference = score_in_full_precision(workload, search, function, settings.backend, log)
    return ScoreJudge(function, reference - _tolerance(options) * abs(reference), settings.backend)


def toml_text(source: str, tuned: Tuned) -> str:
    """Return the overrides as ``[tool.mpcompile]`` of a TOML file, each with its evidence."""
    lines = [f"# mpcompile tune {source}: {tuned.after}; without these overrides {tuned.before}."]
    lines.append("# Copy these lines into pyproject.toml.")
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
        said = f"no op has to return to FP32; with {count} ops in 16 bits"
        console.print(f"{said} {printable(tuned.before)}", markup=False, soft_wrap=True)
    console.print(f"{tuned.trials} trials, {tuned.seconds:.1f} s; wrote {output}", markup=False)
    if tuned.returned:
        console.print(printable(again), markup=False, soft_wrap=True)


def _place(where: Where) -> str:
    """Return a source position as text; a file below the working folder is relative to it."""
    return printable(from_here(str(where)))


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
