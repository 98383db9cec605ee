"""``mpcompile run model.py``: train on the workload's own data."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from rich.console import Console

from mpcompile.artifacts import write_json
from mpcompile.commands.first_batch import check_first_batch
from mpcompile.commands.load_program import load_proved
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal
from mpcompile.commands.training.progress import train
from mpcompile.commands.training.saved_run import SavedRun, check_saving, cut_log
from mpcompile.errors import BadInput
from mpcompile.lower.lower import Backend, Lowering
from mpcompile.numerics.event_files import event_files
from mpcompile.numerics.watch import Watch
from mpcompile.options import RunOptions
from mpcompile.pipeline import to_step
from mpcompile.step.loop import Loop
from mpcompile.step.processes import is_first
from mpcompile.step.transformed import Transformed
from mpcompile.train.launched import launched


def run(source: str, options: RunOptions, inputs: PlanInputs) -> int:
    """Train; return 0, or 128 plus the signal's number if a signal stopped the run.

    Started by torchrun, all processes train together, each on batches of its own.

    Args:
        source: the program.
        options: how it is trained; `mpcompile.numerics.run_log` describes the log, which must not
            exist unless the run is resumed; for many processes see `mpcompile.data_parallel`.
        inputs: how it is planned.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
        CheckFailed: the first batch in 16 bits is too far from FP32; nothing is trained.
    """
    if options.steps < 1:
        raise BadInput(f"--steps is {options.steps}", fix="give at least 1")
    check_saving(options.checkpoints, options.log)
    processes = options.processes
    with launched(shard=processes.shard, reduce=processes.reduce) as parallel:
        first = is_first(parallel)
        if not first:  # only one of many processes reports the run
            options = replace(options, log=None, tensorboard=None, json=None)
        console = open_terminal(options.json, quiet=not first)
        loop = Loop(parallel=parallel)
        transformed, proof = load_proved(source, inputs, console, loop, whole=False)
        if transformed.workload.data is None:
            origin = transformed.workload.origin
            raise BadInput(
                "the workload has no data",
                origin,
                "add data= to the workload: an iterable of batches",
            )
        if options.check and not options.checkpoints.resume:  # a run that goes on was compared
            check_first_batch(source, transformed, proof, console)
        del proof  # it holds a gradient of each weight
        backend = options.backend or inputs.settings.backend
        return _trained(source, transformed, backend, options, console)


def _trained(
    source: str,
    transformed: Transformed,
    backend: Backend | None,
    options: RunOptions,
    console: Console,
) -> int:
    step = to_step(transformed, Lowering(backend=backend))
    saved = SavedRun(step, transformed.workload, options.checkpoints, console)
    first = saved.done
    log, tensorboard = options.log, options.tensorboard
    if log is not None:
        cut_log(log, first)
    with ExitStack() as files:
        lines = files.enter_context(log.open("a", encoding="utf-8")) if log else None
        scalars = files.enter_context(event_files(tensorboard, first)) if tensorboard else None
        watch = Watch(step, console, lines, scalars, transformed)
        left = max(0, options.steps - first)
        losses, seconds = train(step, saved.batches(options.steps), left, console, watch)
    typical = 1000 * median(seconds[1:] or seconds or [0.0])
    document = {
        "source": source,
        "level": transformed.choices.policy.level.value,
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
        f"loss scale {step.loss_scale:g}, {step.skipped} skipped, {typical:.1f} ms per step"
    )
    write_json(options.json, document)
    if saved.stopped is None:
        return 0
    console.print(
        f"{saved.stopped.name} after step {saved.done}: the run is saved; continue it with --resume"
    )
    return 128 + saved.stopped
