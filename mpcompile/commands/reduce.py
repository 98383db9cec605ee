"""``mpcompile reduce``: find a failing node, make it small, write the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save

from mpcompile import __version__
from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.load_program import transform_source
from mpcompile.errors import BadInput, CheckFailed, did_you_mean, printable
from mpcompile.numerics.lockstep import Moment, moment
from mpcompile.numerics.node_errors import NodeError, check, first_failure
from mpcompile.numerics.nonfinite import first_nonfinite
from mpcompile.numerics.warm_up import settled_step
from mpcompile.plan.ranges import Ranges
from mpcompile.program.stack_lines import relative
from mpcompile.program.workload import epochs, source_name
from mpcompile.search.reduce import Reduced, failing_node, reduce
from mpcompile.search.reduced_program import program
from mpcompile.settings import find_settings
from mpcompile.train.train_step import TrainStep


@dataclass(frozen=True)
class Wanted:
    """What is looked for, and where the script goes.

    Attributes:
        node: a node of the step; None: the first that fails.
        tolerance: the error that a node may have.
        steps: training steps before that.
        batches: how many batches to look at, at most.
        output: the script; None: ``NAME.reduced.py``.
        force: whether files that are there may be replaced.
        json_to: where the JSON document goes.
    """

    node: str | None
    tolerance: float
    steps: int
    batches: int
    output: Path | None
    force: bool
    json_to: str | None


def reduce_source(
    source: str, flags: dict[str, Any], plan: Path | None, ranges: Ranges | None, wanted: Wanted
) -> None:
    """Write the smallest part of a program's step that fails, as a script.

    Args:
        source: a file or ``package.module:name``.
        flags: settings given on the command line.
        plan: a plan.json.
        ranges: what was measured.
        wanted: what is looked for.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
        CheckFailed: the program is not finite in FP64 either.
    """
    _check(wanted)
    output = wanted.output or Path(f"{source_name(source)}.reduced.py")
    data = output.with_suffix(".safetensors")
    for file in (output, data):
        check_file(file, wanted.force)
    console = Console(stderr=wanted.json_to == "-", highlight=False, markup=False, soft_wrap=True)
    settings = find_settings(Path.cwd()).over(flags)
    transformed = transform_source(source, settings, plan, ranges, console)
    workload = transformed.workload
    given = list(islice(epochs(workload), wanted.steps + wanted.batches))
    with console.status("training"):
        step, trouble = settled_step(transformed, given, wanted.steps)
    if trouble:
        console.print(trouble)
    with console.status("comparing with FP64"):
        found = _failure(step, given[wanted.steps :], wanted, workload.origin)
    if found is None:
        what = f"{wanted.node} does not fail" if wanted.node else "nothing fails"
        console.print(printable(f"{what} in {_counted(wanted.batches, 'batch', 'batches')}"))
        write_json(wanted.json_to, {"source": source, "failure": None})
        return
    now, row = found
    with console.status("reducing"):
        reduced = reduce(now, row.id, wanted.tolerance)
    lines = _about(row, reduced)
    head = [f"program: {source}", *lines, _made(flags, step)]
    written = program(reduced, head, data.name)
    if written.tensors:
        write_file(data, save(written.tensors), wanted.force)
    write_file(output, written.text, wanted.force)
    files = f"{output}{f' and {data.name}' if written.tensors else ''}"
    for line in [*lines, f"wrote {files}; `python {output}` exits with 1 while it fails"]:
        console.print(printable(line))
    document = _document(row, reduced)
    beside = str(data) if written.tensors else None
    write_json(
        wanted.json_to, {"source": source, "output": str(output), "data": beside, **document}
    )


def _check(wanted: Wanted) -> None:
    if wanted.steps < 0 or wanted.batches < 1:
        what = f"--steps is {wanted.steps}, --batches is {wanted.batches}"
        raise BadInput(what, fix="give at least 0 and at least 1")
    if not (wanted.tolerance > 0 and isfinite(wanted.tolerance)):
        raise BadInput(f"--tolerance is {wanted.tolerance}", fix="give a number over 0")
    if wanted.output is not None and wanted.output.suffix != ".py":
        raise BadInput(f"{wanted.output} is no .py file", fix="give -o a name that ends in .py")


def _failure(
    step: TrainStep, batches: Sequence[Sequence[Any]], wanted: Wanted, origin: str | None
) -> tuple[Moment, NodeError] | None:
    """Return the first failing node of the first batch that has one, or that was asked for."""
    for batch in batches:
        rows = check(step, *batch)
        now = moment(step, *batch)
        if wanted.node is not None:
            row = _named(rows, wanted.node)
            if row.fails(wanted.tolerance):
                return now, row
            continue
        found = first_failure(rows, wanted.tolerance)
        if found is None and _finite(step, batch):
            continue
        # What rounds to zero may only fail further on.
        cause = first_nonfinite(now) if found is None or found.vanished else None
        first = failing_node(rows, cause, wanted.tolerance)
        if first is not None:
            return now, first
        if cause is not None:
            raise CheckFailed(f"{cause.node} ({cause.op}): {cause.why}", str(cause.where) or origin)
    return None


def _finite(step: TrainStep, batch: Sequence[Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in step.gradients(*batch).values())


def _named(rows: list[NodeError], name: str) -> NodeError:
    for row in rows:
        if row.id == name:
            return row
    near = did_you_mean(name, [row.id for row in rows])
    raise BadInput(
        f"the step has no float tensor of the name {name!r}{near}",
        fix="step.txt, which `mpcompile model.py` writes, lists them",
    )


def _about(row: NodeError, reduced: Reduced) -> list[str]:
    """Return what fails and what of it is left, a line a sentence."""
    made, where = reduced.outcome, row.where
    place = f" of module {where.module}" if where.module else ""
    line = f", {relative(where.file)}:{where.line}" if where.file else ""
    values = [source.value for source in reduced.inputs.values()]
    numbers = sum(v.numel() if isinstance(v, torch.Tensor) else 1 for v in values)
    return [
        f"fails: {row.id} ({row.op}, {row.stage}){place}{line}",
        f"how: {_what(made.nonfinite, made.vanished, made.count, made.error, reduced.limit)}",
        f"left: {len(reduced.ops)} of the {_counted(reduced.before, 'op', 'ops')} it is made of, "
        f"{_counted(len(values), 'input', 'inputs')} of {_counted(numbers, 'number', 'numbers')}, "
        f"after {_counted(reduced.tried, 'part', 'parts')} tried",
    ]


def _made(flags: dict[str, Any], step: TrainStep) -> str:
    given = "".join(f", {name} {value}" for name, value in flags.items())
    return (
        f"made: by mpcompile {__version__} with torch {torch.__version__}{given}, after "
        f"{step.taken} steps taken and {step.skipped} skipped, at a loss scale of "
        f"{step.loss_scale:g}"
    )


def _what(nonfinite: int, vanished: int, count: int, error: float, limit: float) -> str:
    if nonfinite:
        return f"{nonfinite:,} of {_counted(count, 'number', 'numbers')} not finite, finite in FP64"
    zeros = f", {vanished:,} of {count:,} rounded to zero" if vanished else ""
    return f"an error of {error:.3g}, where rounding explains {limit:.3g}{zeros}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _document(row: NodeError, reduced: Reduced) -> dict[str, Any]:
    made = reduced.outcome
    return {
        "failure": {
            "node": row.id,
            "op": row.op,
            "stage": row.stage,
            "module": row.where.module,
            "file": row.where.file,
            "line": row.where.line,
            "numbers": made.count,
            "nonfinite": made.nonfinite,
            "vanished": made.vanished,
            "error": made.error if isfinite(made.error) else None,
            "limit": reduced.limit if isfinite(reduced.limit) else None,
        },
        "ops": [node.name for node in reduced.ops],
        "inputs": list(reduced.inputs),
        "ops_before": reduced.before,
        "parts_tried": reduced.tried,
    }
