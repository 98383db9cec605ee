"""``mpcompile inspect``: the precision of each op, and the least time a step can take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.load_view import load_view
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal
from mpcompile.errors import BadInput
from mpcompile.options import InspectOptions
from mpcompile.plan.ranges import Ranges
from mpcompile.show.csv_rows import write_csv
from mpcompile.show.html_report.check_file import read_check
from mpcompile.show.model_explorer import model_explorer_files
from mpcompile.show.summary import bytes_text, numbers_table
from mpcompile.show.tables import NodeSelection, casts_of, ops_by_precision, peak_of, saved_of
from mpcompile.show.terminal import (
    casts_table,
    headline,
    largest_table,
    memory_plot,
    nodes_table,
    ops_tables,
    saved_table,
    text_of,
    where_of,
)
from mpcompile.show.view import View, ViewNode, plain
from mpcompile.speed.devices import DEVICES, Device, this_cpu
from mpcompile.speed.least_time import Bound, Kernel, bound

_SHOWN, _WIDEST = 10, 100


def inspect(source: str, options: InspectOptions, inputs: PlanInputs) -> None:
    """Print the precision of each op, the casts, the kept tensors, and the costs.

    Args:
        source: see `mpcompile.commands.load_view.load_view`.
        options: which nodes, and how; a device is a name in `DEVICES`, ``cpu``, which is measured,
            or ``all`` for every device in `DEVICES`.
        inputs: how a program is planned.
    """
    csv = options.format == "csv"
    console = open_terminal("-" if csv else options.json)
    opened = load_view(source, inputs, console)
    view, made = opened.view, opened.made
    if options.model_explorer is not None:
        _write_for_model_explorer(view, inputs.ranges, options.model_explorer, options)
        console.print(f"wrote {options.model_explorer}", markup=False)
    selection = NodeSelection(options.module, options.op, options.in_precision, options.stage)
    nodes = selection.of(view)
    bounds: list[Bound] = []
    if made is not None and made.step and selection.everything and opened.pieces is None:
        bounds = [bound(made.step, item) for item in _devices(options.device)]
    if csv:
        write_csv(nodes, sys.stdout)
    else:
        _print(view, nodes, selection, options.all, bounds, console)
        if made is not None and bounds:
            console.print(_changes(made.changes))
    if options.json is None:
        return
    document = _document(view, nodes)
    if made is not None and bounds:
        document |= {
            "changes": made.changes,
            "bounds": [_bound_document(item) for item in bounds],
        }
    write_json(options.json, document)


def _write_for_model_explorer(
    view: View, ranges: Ranges | None, folder: Path, options: InspectOptions
) -> None:
    checked = read_check(options.check).nodes if options.check else {}
    errors = {name: node.error for name, node in checked.items() if node.error is not None}
    files = model_explorer_files(view, ranges, errors or None)
    for name in files:
        if folder.is_dir():
            check_file(folder / name, options.force)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be created ({error.strerror})", fix="choose another folder"
        ) from error
    for name, text in files.items():
        write_file(folder / name, text, options.force)


def _print(
    view: View,
    nodes: Sequence[ViewNode],
    selection: NodeSelection,
    everything: bool,
    bounds: list[Bound],
    console: Console,
) -> None:
    limit = len(nodes) if everything else _SHOWN
    if not nodes:
        console.print("no node matches the filters", markup=False)
        return
    console.print(headline(view, nodes))
    for table in ops_tables(nodes, limit):
        console.print(table)
    if not selection.everything:
        console.print(nodes_table(nodes, limit if everything else 3 * limit))
    for found in (casts_table(view, nodes, limit), saved_table(nodes, limit)):
        if found is not None:
            console.print(found)
    if selection.everything:
        for line in memory_plot(view, min(console.width, _WIDEST)):
            console.print(line)
    if bounds:
        console.print(_comparison(bounds))
        for item in bounds if len(bounds) == 1 else ():
            console.print(_kernels(item, limit))
    elif (found := largest_table(view, nodes, limit)) is not None:
        console.print(found)


def _document(view: View, nodes: Sequence[ViewNode]) -> dict[str, Any]:
    peak = peak_of(view)
    return {
        "source": view.source,
        "kind": view.kind,
        "precision": view.precision,
        "ops": ops_by_precision(nodes),
        "casts": [asdict(row) for row in casts_of(view, nodes)],
        "saved": [{"id": node.id, "bytes": node.bytes} for node in saved_of(nodes)],
        "peak": {"id": peak.id, "bytes": peak.alive} if peak else None,
        "nodes": [plain(node) for node in nodes],
    }


def _devices(name: str) -> tuple[Device, ...]:
    if name == "all":
        return tuple(DEVICES.values())
    return (this_cpu() if name == "cpu" else DEVICES[name],)


def _changes(changes: dict[str, int]) -> Table:
    table = numbers_table("passes, by changes", "pass", "changes")
    for name, count in changes.items():
        if count:
            table.add_row(name, str(count))
    return table


def _comparison(bounds: list[Bound]) -> Table:
    title = "least time of a step on a device"
    table = numbers_table(title, "device", "arithmetic", "memory", "update", "bound")
    for item in bounds:
        parts = (item.arithmetic, item.memory, item.update, item.seconds)
        table.add_row(item.device.title, *map(_time_text, parts))
    return table


def _kernels(item: Bound, limit: int) -> Table:
    shown = item.largest(limit)
    title = f"kernels with the largest share of it: {len(shown)} of {len(item.kernels)}"
    table = numbers_table(title, "kernel", "where", "FLOPs", "bytes", "bound by", "time", "share")
    table.columns[1].justify = "left"
    table.columns[1].overflow = "fold"
    for kernel in shown:
        seconds = kernel.seconds(item.device)
        table.add_row(
            text_of(f"{kernel.name} ({kernel.stage})"),
            where_of(kernel.where),
            _count_text(kernel.flops),
            bytes_text(kernel.bytes),
            _limit(item, kernel),
            _time_text(seconds),
            f"{seconds / item.seconds:.0%}" if item.seconds else "-",
        )
    return table


def _limit(item: Bound, kernel: Kernel) -> str:
    return "memory" if item.memory_bounds(kernel) else "arithmetic" if kernel.flops else "nothing"


def _bound_document(item: Bound) -> dict[str, Any]:
    """Return a bound as JSON; times in seconds."""
    return {
        "device": item.device.name,
        "title": item.device.title,
        "seconds": item.seconds,
        "arithmetic": item.arithmetic,
        "memory": item.memory,
        "update": item.update,
        "flops": item.flops,
        "bytes": item.bytes,
        "largest": [
            {
                "name": kernel.name,
                "op": kernel.kind,
                "stage": kernel.stage,
                "module": kernel.where.module,
                "file": kernel.where.file,
                "line": kernel.where.line,
                "flops": kernel.flops,
                "reads": kernel.reads,
                "writes": kernel.writes,
                "bound_by": _limit(item, kernel),
                "seconds": kernel.seconds(item.device),
            }
            for kernel in item.largest(_SHOWN)
        ],
    }


def _time_text(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.2f} us"


def _count_text(count: float) -> str:
    for unit in ("", " k", " M", " G"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g} T"
