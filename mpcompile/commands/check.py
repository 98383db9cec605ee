"""``mpcompile check``: compare every tensor of a step with FP64 and eager autocast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from math import isfinite
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.text import Text

from mpcompile.artifacts import write_json
from mpcompile.commands.first_batch import advice
from mpcompile.commands.load_program import load_program
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, say
from mpcompile.errors import BadInput, CheckFailed, from_here
from mpcompile.numerics.lockstep import Moment
from mpcompile.numerics.node_errors import (
    NodeError,
    errors_in,
    failures,
    first_failure,
    origin,
    worst,
)
from mpcompile.numerics.node_errors import check as compare
from mpcompile.numerics.remedies import (
    can_try,
    has_loss_scale,
    module_of,
    remedies_for,
    tried,
    with_batch,
)
from mpcompile.numerics.unbound import unbound_moment
from mpcompile.numerics.warm_up import settled_step
from mpcompile.options import CheckOptions
from mpcompile.program.capture import capture
from mpcompile.program.random_state import random_state
from mpcompile.program.workload import epochs
from mpcompile.show.summary import numbers_table
from mpcompile.show.terminal import text_of, where_of
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.transformed import Transformed
from mpcompile.train.train_step import TrainStep

VERSION = 1
_SHOWN = 10


def check(source: str, options: CheckOptions, inputs: PlanInputs) -> None:
    """Print each tensor's error against FP64, forward and backward; fail if one is too large.

    Args:
        source: a program with a loss.
        options: `mpcompile.numerics.node_errors.NodeError.fails` defines the tolerance; after
            the steps the loss scale is found on each compared batch.
        inputs: settings, plan and ranges for the planner.

    Raises:
        BadInput: an argument is wrong, or the program does not train.
        CheckFailed: a node is over the tolerance.
    """
    tolerance, batches, steps = options.tolerance, options.batches, options.steps
    if not tolerance > 0:
        raise BadInput(f"--tolerance is {tolerance}", fix="give a number above 0")
    if batches < 1 or steps < 0:
        raise BadInput(
            f"--batches is {batches} and --steps is {steps}", fix="give at least 1 and at least 0"
        )
    console = open_terminal(options.json)
    transformed = load_program(source, inputs, console)
    workload = transformed.workload
    data = list(islice(epochs(workload), steps + batches))
    with console.status("training"):
        step, _ = settled_step(transformed, data, steps)
    plain = capture(workload)
    rows: list[NodeError] = []
    with console.status("comparing"):
        for batch in data[steps:]:
            now = compare(step, *batch, autocast=plain)
            rows = worst(rows, now) if rows else now
    failed = list(failures(rows, tolerance))
    _print(rows, failed, options, step, console)
    write_json(
        options.json,
        {
            "version": VERSION,
            "source": source,
            "reference": "fp64",
            "tolerance": tolerance,
            "batches": batches,
            "steps": steps,
            "loss_scale": step.loss_scale,
            "first": failed[0].id if failed else None,
            "failed": [row.id for row in failed],
            "rows": [_document(row) for row in rows],
        },
    )
    if failed:
        first, begins = failed[0], origin(rows, failed[0])
        what = _verdict(first, tolerance) + _beginning(first, begins)
        with console.status("trying overrides"):
            fix = _advice(source, transformed, step, data[steps:], tolerance, rows)
        raise CheckFailed(what, _place(first), fix)


def _print(
    rows: Sequence[NodeError],
    failed: Sequence[NodeError],
    options: CheckOptions,
    step: TrainStep,
    console: Console,
) -> None:
    for title, chosen in _tables(rows, failed, options.all):
        table = numbers_table(title, "node", "where")
        table.box, table.pad_edge = SIMPLE_HEAD, False
        table.columns[1].justify, table.columns[1].overflow = "left", "fold"
        for name in ("error", "own", "autocast", "FP32", "bits", "zero", "subn"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in chosen:
            table.add_row(*_cells(row))
        console.print(table)
    peers = [row for row in rows if row.autocast is not None]
    nearer = sum(row.error <= (row.autocast or 0.0) for row in peers)
    count = "1 batch" if options.batches == 1 else f"{options.batches} batches"
    verdict = f"{len(failed)} over" if failed else "none over"
    console.print(
        "error: of the tensor against FP64; own: error of the node alone; bits: to overflow at "
        "65504; "
        "zero, subn: shares of zeros and of FP16 subnormals",
        style="dim",
    )
    say(
        console,
        f"{len(rows):,} tensors in {count} at a loss scale of {step.loss_scale:g}: {verdict} the "
        f"tolerance of {options.tolerance:g}; {nearer:,} of the {len(peers):,} that eager autocast "
        "also computes are at least as near to FP64 here",
    )


def _tables(
    rows: Sequence[NodeError], failed: Sequence[NodeError], everything: bool
) -> Iterator[tuple[str, Sequence[NodeError]]]:
    if everything:
        yield f"all {len(rows)} tensors, in order", rows
        return
    if failed:
        yield f"over the tolerance: the first {min(_SHOWN, len(failed))} tensors", failed[:_SHOWN]
    for stage in ("forward", "backward"):
        made = [row for row in rows if row.stage == stage and row.own]  # the others pass errors on
        by_error = sorted(made, key=lambda row: -_excess(row))[:_SHOWN]
        if by_error and not failed:
            yield f"{stage}: farthest from FP64", by_error


def _excess(row: NodeError) -> float:
    """Return the error, or 0 where FP32 is far off too: such an error is noise."""
    return row.error if row.error > row.explained or row.full < 1e-4 else 0.0


def _cells(row: NodeError) -> list[str | Text]:
    return [
        text_of(row.id),
        where_of(row.where),
        _number(row.error),
        _number(row.own),
        "-" if row.autocast is None else _number(row.autocast),
        _number(row.full),
        "-" if row.headroom_bits is None else f"{row.headroom_bits:.1f}",
        _share(row.zeros),
        _share(row.subnormals),
    ]


def _number(error: float) -> str:
    """Write an error with one digit: ``9e-4``."""
    if not error or not isfinite(error):
        return "inf" if error else "0"
    digit, _, power = f"{error:.0e}".partition("e")
    return f"{digit}e{int(power)}"


def _share(part: float) -> str:
    return f"{part:.0%}" if part else "-"


def _verdict(row: NodeError, tolerance: float) -> str:
    what = f"{row.id} ({row.op}, {row.stage}) is the first tensor over the tolerance: "
    if row.nonfinite:
        return f"{what}{row.nonfinite:,} of its numbers are not finite"
    lost = f", {row.vanished:.0%} of its numbers rounded to zero" if row.vanished else ""
    return f"{what}its error is {row.error:.2g}, over {tolerance:g}{lost}; FP32's is {row.full:.2g}"


def _beginning(row: NodeError, begins: NodeError) -> str:
    if begins is row:
        return ""
    lost = f", {begins.vanished:.0%} of its numbers rounded to zero" if begins.vanished else ""
    place = from_here(str(begins.where))
    return f"; the error begins with {begins.id} ({begins.op}, {begins.stage}) at {place}{lost}"


def _place(row: NodeError) -> str | None:
    return row.where.at or row.where.module or None


def _advice(
    source: str,
    transformed: Transformed,
    step: TrainStep,
    batches: Sequence[tuple[Any, ...]],
    tolerance: float,
    rows: list[NodeError],
) -> str:
    """Return an override with which every batch is within the tolerance, as it was tried."""
    scale = step.loss_scale if has_loss_scale(transformed) else None
    first = next(failures(rows, tolerance))

    def holds(other: Transformed) -> bool:
        rule = other.choices.scale
        return all(
            first_failure(errors_in(_inputs(other, batch, rule, step)), tolerance) is None
            for batch in batches
        )

    remedy = tried(transformed, remedies_for(rows, first, scale), holds, module_of(rows, first))
    return advice(source, remedy, can_try(transformed))


def _inputs(other: Transformed, batch: tuple[Any, ...], rule: LossScale, step: TrainStep) -> Moment:
    scale = step.loss_scale if rule.dynamic else rule.initial
    made = replace(other, workload=with_batch(other.workload, batch))
    return unbound_moment(made, random_state(step.device), scale)


def _document(row: NodeError) -> dict[str, Any]:
    """Return a row as JSON, which has no infinity: an infinite number becomes null."""
    return {
        name: value if not isinstance(value, float) or isfinite(value) else None
        for name, value in asdict(row).items()
    }
