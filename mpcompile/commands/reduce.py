"""``mpcompile reduce``: find a failing node, make it small, write the script."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mpcompile import __version__
from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.load_program import load_program
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, say
from mpcompile.errors import BadInput, CheckFailed, did_you_mean
from mpcompile.numerics.lockstep import Moment, moment
from mpcompile.numerics.node_errors import NodeError, check, first_failure
from mpcompile.numerics.nonfinite import first_nonfinite
from mpcompile.numerics.warm_up import settled_step
from mpcompile.options import ReduceOptions
from mpcompile.program.stack_lines import relative
from mpcompile.program.workload import epochs, source_name
from mpcompile.search.reduce import Reduced, failing_node
from mpcompile.search.reduce import reduce as smallest_failing_part
from mpcompile.search.reduced_program import program
from mpcompile.train.train_step import TrainStep


def reduce(source: str, options: ReduceOptions, inputs: PlanInputs) -> None:
    """Write the smallest part of a program's step that fails, as a script.

    Args:
        source: a file or ``package.module:name``.
        options: which failure, and where the script is written.
        inputs: how it is planned.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
        CheckFailed: the program is not finite in FP64 either.
    """
    _check(options)
    output = options.output or Path(f"{source_name(source)}.reduced.py")
    data = output.with_suffix(".safetensors")
    for file in (output, data):
        check_file(file, options.force)
    console = open_terminal(options.json)
    transformed = load_program(source, inputs, console)
    workload = transformed.workload
    given = list(islice(epochs(workload), options.steps + options.batches))
    with console.status("training"):
        step, trouble = settled_step(transformed, given, options.steps)
    if trouble:
        say(console, trouble)
    with console.status("comparing with FP64"):
        found = _failure(step, given[options.steps :], options, workload.origin)
    if found is None:
        what = f"{options.node} does not fail" if options.node else "nothing fails"
        say(console, f"{what} in {_counted(options.batches, 'batch', 'batches')}")
        write_json(options.json, {"source": source, "failure": None})
        return
    now, row = found
    with console.status("reducing"):
        reduced = smallest_failing_part(now, row.id, options.tolerance)
    lines = _about(row, reduced)
    head = [f"program: {source}", *lines, _made(options, step)]
    written = program(reduced, head, data.name)
    if written.tensors:
        write_file(data, save(written.tensors), options.force)
    write_file(output, written.text, options.force)
    files = f"{output}{f' and {data.name}' if written.tensors else ''}"
    for line in [*lines, f"wrote {files}; `python {output}` exits with 1 while it fails"]:
        say(console, line)
    document = _document(row, reduced)
    beside = str(data) if written.tensors else None
    write_json(options.json, {"source": source, "output": str(output), "data": beside, **document})


def _check(options: ReduceOptions) -> None:
    if options.steps < 0 or options.batches < 1:
        what = f"--steps is {options.steps}, --batches is {options.batches}"
        raise BadInput(what, fix="give at least 0 steps and at least 1 batch")
    if not (options.tolerance > 0 and isfinite(options.tolerance)):
        raise BadInput(f"--tolerance is {options.tolerance}", fix="give a number above 0")
    if options.output is not None and options.output.suffix != ".py":
        raise BadInput(f"{options.output} is not a .py file", fix="give -o a name that ends in .py")


def _failure(
    step: TrainStep, batches: Sequence[Sequence[Any]], options: ReduceOptions, origin: str | None
) -> tuple[Moment, NodeError] | None:
    """Return the first failing node of the first batch with one, or the requested node."""
    for batch in batches:
        rows = check(step, *batch)
        now = moment(step, *batch)
        if options.node is not None:
            row = _named(rows, options.node)
            if row.fails(options.tolerance):
                return now, row
            continue
        found = first_failure(rows, options.tolerance)
        if found is None and _finite(step, batch):
            continue
        # A number that rounds to zero may cause a failure only in a later node.
        cause = first_nonfinite(now) if found is None or found.vanished else None
        first = failing_node(rows, cause, options.tolerance)
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
        f"the step has no float tensor {name!r}{near}",
        fix="`mpcompile model.py` writes step.txt, which lists them",
    )


def _about(row: NodeError, reduced: Reduced) -> list[str]:
    """Return sentences about the failure and its reduced program, one per line."""
    made, where = reduced.outcome, row.where
    place = f" of module {where.module}" if where.module else ""
    line = f", {relative(where.file)}:{where.line}" if where.file else ""
    values = [source.value for source in reduced.inputs.values()]
    numbers = sum(v.numel() if isinstance(v, torch.Tensor) else 1 for v in values)
    return [
        f"fails: {row.id} ({row.op}, {row.stage}){place}{line}",
        f"how: {_what(made.nonfinite, made.vanished, made.count, made.error, reduced.limit)}",
        f"left: {len(reduced.ops)} of the {_counted(reduced.before, 'op', 'ops')} it depends on, "
        f"{_counted(len(values), 'input', 'inputs')} of {_counted(numbers, 'number', 'numbers')}, "
        f"found after {_counted(reduced.tried, 'trial', 'trials')}",
    ]


def _made(options: ReduceOptions, step: TrainStep) -> str:
    given = "".join(f", {name} {value}" for name, value in options.flags.given().items())
    return (
        f"made: by mpcompile {__version__} with torch {torch.__version__}{given}, after "
        f"{step.taken} steps taken and {step.skipped} skipped, at a loss scale of "
        f"{step.loss_scale:g}"
    )


def _what(nonfinite: int, vanished: int, count: int, error: float, limit: float) -> str:
    if nonfinite:
        numbers = _counted(count, "number", "numbers")
        return f"{nonfinite:,} of {numbers} not finite, although finite in FP64"
    zeros = f", {vanished:,} of {count:,} rounded to zero" if vanished else ""
    return f"an error of {error:.3g}, but rounding explains only {limit:.3g}{zeros}"


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
