"""``mpcompile inspect``: what runs in which precision, and the least time a step can take."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.load_view import open_source
from mpcompile.errors import BadInput, printable
from mpcompile.plan.ranges import Ranges
from mpcompile.settings import find_settings
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
)
from mpcompile.show.view import View, ViewNode, plain
from mpcompile.speed.devices import DEVICES, Device, this_cpu
from mpcompile.speed.least_time import Bound, Kernel, bound

_SHOWN, _WIDEST = 10, 100


@dataclass(frozen=True, slots=True)
class Shown:
    """How much is shown, and how.

    Attributes:
        selection: which nodes.
        everything: tables are not cut short.
        csv: rows of nodes, comma-separated, instead of tables.
        model_explorer: a folder to write for Model Explorer, perhaps.
        check: what `mpcompile check` wrote, for an overlay of errors in that folder, perhaps.
        force: replace what is there.
    """

    selection: NodeSelection
    everything: bool
    csv: bool
    model_explorer: Path | None = None
    check: Path | None = None
    force: bool = False


def inspect(
    source: str,
    device: str,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    shown: Shown,
    json_to: str | None,
) -> None:
    """Print what runs in which precision, what is cast and kept, and what it costs.

    Args:
        source: see `mpcompile.commands.load_view.open_source`.
        device: a name of `DEVICES`, ``cpu``, which is measured, or ``all`` for every one of
            `DEVICES`.
        flags: settings given on the command line.
        plan: a plan.json.
        ranges: what was measured.
        shown: how much.
        json_to: where the document goes.
    """
    console = Console(stderr=json_to == "-" or shown.csv, highlight=False)
    settings = find_settings(Path.cwd()).over(flags)
    opened = open_source(source, settings, plan, ranges, console)
    view, made = opened.view, opened.made
    if shown.model_explorer is not None:
        _write_for_model_explorer(view, ranges, shown)
        console.print(f"wrote {shown.model_explorer}", markup=False)
    nodes = shown.selection.of(view)
    bounds: list[Bound] = []
    if made is not None and made.step is not None and shown.selection.everything:
        bounds = [bound(made.step, item) for item in _devices(device)]
    if shown.csv:
        write_csv(nodes, sys.stdout)
    else:
        _print(view, nodes, shown, bounds, console)
        if made is not None and bounds:
            console.print(_changes(made.changes))
    if json_to is None:
        return
    document = _document(view, nodes)
    if made is not None and bounds:
        document |= {
            "changes": made.changes,
            "bounds": [_bound_document(item) for item in bounds],
        }
    write_json(json_to, document)


def _write_for_model_explorer(view: View, ranges: Ranges | None, shown: Shown) -> None:
    folder, force = shown.model_explorer, shown.force
    assert folder is not None
    checked = read_check(shown.check).nodes if shown.check else {}
    errors = {name: node.error for name, node in checked.items() if node.error is not None}
    files = model_explorer_files(view, ranges, errors or None)
    for name in files:
        if folder.is_dir():
            check_file(folder / name, force)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be made ({error.strerror})", "", "choose another"
        ) from error
    for name, text in files.items():
        write_file(folder / name, text, force)


def _print(
    view: View, nodes: Sequence[ViewNode], shown: Shown, bounds: list[Bound], console: Console
) -> None:
    limit = len(nodes) if shown.everything else _SHOWN
    if not nodes:
        console.print("no node fits", markup=False)
        return
    console.print(headline(view, nodes))
    for table in ops_tables(nodes, limit):
        console.print(table)
    if not shown.selection.everything:
        console.print(nodes_table(nodes, limit if shown.everything else 3 * limit))
    for found in (casts_table(view, nodes, limit), saved_table(nodes, limit)):
        if found is not None:
            console.print(found)
    if shown.selection.everything:
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
    title = "no step on it is faster than"
    table = numbers_table(title, "device", "arithmetic", "memory", "update", "bound")
    for item in bounds:
        parts = (item.arithmetic, item.memory, item.update, item.seconds)
        table.add_row(item.device.title, *map(_time_text, parts))
    return table


def _kernels(item: Bound, limit: int) -> Table:
    shown = item.largest(limit)
    title = f"what makes most of it: {len(shown)} of {len(item.kernels)} kernels"
    here = f"{Path.cwd()}{os.sep}"
    table = numbers_table(title, "kernel", "where", "FLOPs", "bytes", "bound by", "time", "share")
    table.columns[1].justify = "left"
    table.columns[1].overflow = "fold"
    for kernel in shown:
        seconds = kernel.seconds(item.device)
        table.add_row(
            Text(printable(f"{kernel.name} ({kernel.stage})")),
            Text(printable(str(kernel.where).replace(here, ""))),
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
