"""``mpcompile inspect``: what the passes did to a step, and the least time it can take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpcompile.cost import Bound, Kernel, bound
from mpcompile.devices import DEVICES, Device, this_cpu
from mpcompile.errors import BadInput, printable
from mpcompile.plan_commands import write_json
from mpcompile.ranges import Ranges
from mpcompile.report import bytes_text, numbers_table
from mpcompile.settings import find_settings
from mpcompile.transform_source import transform_source

_SHOWN = 10


def inspect(
    source: str,
    device: str,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    json_to: str | None,
) -> None:
    """Transform and print; write nothing but the JSON document.

    Args:
        source: a file or ``package.module:name``.
        device: a name of `DEVICES`, ``cpu``, which is measured, or ``all`` for every one of
            `DEVICES`.
        flags: settings given on the command line.
        plan: a plan.json.
        ranges: what was measured.
        json_to: where the document goes.

    Raises:
        BadInput: the workload has no step to bound.
    """
    console = Console(stderr=json_to == "-", highlight=False)
    settings = find_settings(Path.cwd()).over(flags)
    made = transform_source(source, settings, plan, ranges, console)
    step, origin = made.step, made.workload.origin
    if step is None:
        raise BadInput("a workload without a loss has no step to bound", origin, "add one")
    bounds = [bound(step, item) for item in _devices(device)]
    console.print(_changes(made.changes))
    console.print(_comparison(bounds))
    for item in bounds if len(bounds) == 1 else ():
        console.print(_kernels(item))
    write_json(
        json_to,
        {
            "source": source,
            "changes": made.changes,
            "bounds": [_document(item) for item in bounds],
        },
    )


def _devices(name: str) -> tuple[Device, ...]:
    if name == "all":
        return tuple(DEVICES.values())
    return (this_cpu() if name == "cpu" else DEVICES[name],)


def _changes(changes: dict[str, int]) -> Table:
    table = numbers_table("passes, by changes", "pass", "changes")
    for name, count in changes.items():
        table.add_row(name, str(count))
    return table


def _comparison(bounds: list[Bound]) -> Table:
    title = "no step on it is faster than"
    table = numbers_table(title, "device", "arithmetic", "memory", "update", "bound")
    for item in bounds:
        parts = (item.arithmetic, item.memory, item.update, item.seconds)
        table.add_row(item.device.title, *map(_time_text, parts))
    return table


def _kernels(item: Bound) -> Table:
    shown = item.largest(_SHOWN)
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


def _document(item: Bound) -> dict[str, Any]:
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
