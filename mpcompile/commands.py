"""What the commands do, once torch is loaded."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from mpcompile.artifacts import check_file, check_free, write_file, write_folder
from mpcompile.calibration import calibrate as measure
from mpcompile.errors import BadInput
from mpcompile.event_files import event_files
from mpcompile.graph_text import graph_text
from mpcompile.inspection.of_step import view_of
from mpcompile.inspection.view import BEFORE, PLAN, VIEW
from mpcompile.pipeline import Transformed, to_step
from mpcompile.pipeline import transform as transform_workload
from mpcompile.plan_commands import write_json
from mpcompile.policy import FULL_PRECISION
from mpcompile.precision import Precision
from mpcompile.ranges import Ranges
from mpcompile.report import print_ranges, print_summary, summarize
from mpcompile.saved_run import SavedRun, Saving, check_saving, cut_log
from mpcompile.settings import find_settings
from mpcompile.training import train
from mpcompile.transform_source import transform_source
from mpcompile.watch import Watch
from mpcompile.workload import load, source_name

_NAMES = {Precision.FP16: "fp16", Precision.BF16: "bf16", Precision.FP32: "fp32"}


def transform(
    source: str,
    output: Path | None,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    force: bool,
    json_to: str | None,
) -> None:
    """``mpcompile model.py``: transform, print the summary, write the artifacts."""
    console = Console(stderr=json_to == "-", highlight=False)
    folder = output or Path(f"{source_name(source)}.mp")
    check_free(folder, force)
    settings = find_settings(Path.cwd()).over(flags)
    mixed = transform_source(source, settings, plan, ranges, console)
    with console.status("transforming"):
        plain = transform_workload(mixed.workload, FULL_PRECISION)
        summary = summarize(mixed, plain)
    files = {
        PLAN: mixed.plan.to_json() + "\n",
        VIEW: view_of(mixed, source).to_json() + "\n",
        BEFORE: view_of(plain, source).to_json() + "\n",
        "summary.json": json.dumps(summary.to_dict(), indent=1) + "\n",
        "forward.before.txt": graph_text(plain.forward.module.graph) + "\n",
        "forward.after.txt": graph_text(mixed.forward.module.graph) + "\n",
        "decisions.txt": _decisions(mixed),
    }
    if mixed.step is not None:
        files["step.txt"] = f"{mixed.step}\n"
    write_folder(folder, files, force)
    how = f"by {plan}" if plan else f"level {mixed.policy.level.value}"
    print_summary(summary, f"{source} in {_NAMES[mixed.plan.precision]}, {how}", console)
    console.print(f"wrote {folder}/: {', '.join(files)}")
    write_json(json_to, {"source": source, "output": str(folder), **summary.to_dict()})


def run(
    source: str,
    steps: int,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    log: Path | None,
    tensorboard: Path | None,
    saving: Saving,
    json_to: str | None,
) -> int:
    """``mpcompile run model.py``: train on the workload's own data.

    A run that was stopped by a signal returns 128 and its number, any other 0.

    Args:
        source: the program.
        steps: how many.
        flags: settings given on the command line.
        plan: a plan.json.
        ranges: what was measured.
        log: a file for a line a step, see `mpcompile.run_log`; it must not be there unless the run
            is resumed, and then goes on.
        tensorboard: a folder for the same as scalars.
        saving: where and when it is saved.
        json_to: where the document goes.
    """
    if steps < 1:
        raise BadInput(f"--steps is {steps}", "", "give at least 1")
    check_saving(saving, log)
    console = Console(stderr=json_to == "-", highlight=False)
    settings = find_settings(Path.cwd()).over(flags)
    transformed = transform_source(source, settings, plan, ranges, console)
    workload = transformed.workload
    if workload.data is None:
        raise BadInput(
            "the workload has no data", workload.origin, "give data=, an iterable of batches"
        )
    step = to_step(transformed, settings.backend)
    saved = SavedRun(step, workload, saving, console)
    first = saved.done
    if log is not None:
        cut_log(log, first)
    with ExitStack() as files:
        lines = files.enter_context(log.open("a", encoding="utf-8")) if log else None
        scalars = files.enter_context(event_files(tensorboard, first)) if tensorboard else None
        watch = Watch(step, console, lines, scalars)
        left = max(0, steps - first)
        losses, seconds = train(step, saved.batches(steps), left, console, watch)
    typical = 1000 * median(seconds[1:] or seconds or [0.0])
    document = {
        "source": source,
        "level": transformed.policy.level.value,
        "precision": _NAMES[transformed.plan.precision],
        "backend": step.backend,
        "first": first,
        "steps": len(losses),
        "taken": step.taken,
        "skipped": step.skipped,
        "loss_scale": step.loss_scale,
        "median_step_ms": round(typical, 3),
        "losses": losses,
    }
    change = f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, " if losses else ""
    console.print(
        f"{len(losses)} steps: {change}"
        f"loss scale {step.loss_scale:g}, {step.skipped} skipped, {typical:.1f} ms a step"
    )
    write_json(json_to, document)
    if saved.stopped is None:
        return 0
    console.print(f"{saved.stopped.name} after step {saved.done}: saved, go on with --resume")
    return 128 + saved.stopped


def calibrate(
    source: str, output: Path | None, batches: int, force: bool, json_to: str | None
) -> None:
    """``mpcompile calibrate model.py``: measure, print the nearest to danger, write the ranges."""
    console = Console(stderr=json_to == "-", highlight=False)
    file = output or Path(f"{source_name(source)}.ranges.json")
    check_file(file, force)
    workload = load(source)
    with console.status("measuring"):
        ranges = measure(workload, batches)
    write_file(file, ranges.to_json() + "\n", force)
    print_ranges(ranges, console)
    console.print(f"wrote {file}")
    write_json(
        json_to,
        {
            "source": source,
            "output": str(file),
            "batches": ranges.batches,
            "tensors": len(ranges.values),
            "largest": max((held.largest_finite for held in ranges.values.values()), default=0.0),
            "not_finite": sum(held.nonfinite > 0 for held in ranges.values.values()),
        },
    )


def _decisions(mixed: Transformed) -> str:
    rows = [
        (d.op, d.kind, d.computes.short, d.stores.short, str(d.where), d.reason)
        for d in mixed.plan.decisions
    ]
    head = ("node", "op", "computes", "stores", "where", "why")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines) + "\n"
