"""``mpcompile run model.py``: train on the workload's own data."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from mpcompile.artifacts import write_json
from mpcompile.commands.load_program import transform_source
from mpcompile.commands.progress import train
from mpcompile.commands.saved_run import SavedRun, Saving, check_saving, cut_log
from mpcompile.errors import BadInput
from mpcompile.numerics.event_files import event_files
from mpcompile.numerics.watch import Watch
from mpcompile.pipeline import Transformed, to_step
from mpcompile.plan.ranges import Ranges
from mpcompile.settings import find_settings
from mpcompile.step.loop import Loop
from mpcompile.step.processes import is_first
from mpcompile.train.launched import launched


@dataclass(frozen=True, slots=True)
class Told:
    """Where a run is told of; only the first of many processes tells.

    Attributes:
        log: a file for a line a step, see `mpcompile.numerics.run_log`; it must not be there
            unless the run is resumed, and then goes on.
        tensorboard: a folder for the same as scalars.
        json_to: where the document at the end goes.
    """

    log: Path | None = None
    tensorboard: Path | None = None
    json_to: str | None = None


def run(
    source: str,
    steps: int,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    saving: Saving,
    told: Told,
    *,
    shard: bool,
    reduce: str,
) -> int:
    """Train; a run that was stopped by a signal returns 128 and its number, any other 0.

    Started by torchrun, all processes train together, each on batches of its own.

    Args:
        source: the program.
        steps: how many.
        flags: settings given on the command line.
        plan: a plan.json.
        ranges: what was measured.
        saving: where and when it is saved.
        told: where it is told of.
        shard: of many processes, see `mpcompile.data_parallel`.
        reduce: too.
    """
    if steps < 1:
        raise BadInput(f"--steps is {steps}", fix="give at least 1")
    check_saving(saving, told.log)
    with launched(shard=shard, reduce=reduce) as parallel:
        first = is_first(parallel)
        told = told if first else Told()
        console = Console(stderr=told.json_to == "-", highlight=False, quiet=not first)
        settings = find_settings(Path.cwd()).over(flags)
        loop = Loop(parallel=parallel)
        transformed = transform_source(source, settings, plan, ranges, console, loop)
        if transformed.workload.data is None:
            origin = transformed.workload.origin
            raise BadInput("the workload has no data", origin, "give data=, an iterable of batches")
        return _trained(source, transformed, settings.backend, steps, saving, told, console)


def _trained(
    source: str,
    transformed: Transformed,
    backend: Any,
    steps: int,
    saving: Saving,
    told: Told,
    console: Console,
) -> int:
    step = to_step(transformed, backend)
    saved = SavedRun(step, transformed.workload, saving, console)
    first = saved.done
    log, tensorboard = told.log, told.tensorboard
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
        "precision": transformed.plan.precision.name.lower(),
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
    write_json(told.json_to, document)
    if saved.stopped is None:
        return 0
    console.print(f"{saved.stopped.name} after step {saved.done}: saved, go on with --resume")
    return 128 + saved.stopped
