"""What the commands do, once torch is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import check_file, check_free, write_file, write_folder
from mpcompile.calibration import calibrate as measure
from mpcompile.graph_text import graph_text
from mpcompile.inspection.of_step import view_of
from mpcompile.inspection.view import BEFORE, PLAN, VIEW
from mpcompile.pipeline import Transformed
from mpcompile.pipeline import transform as transform_workload
from mpcompile.plan_commands import write_json
from mpcompile.policy import FULL_PRECISION
from mpcompile.ranges import Ranges
from mpcompile.report import print_ranges, print_summary, summarize
from mpcompile.settings import find_settings
from mpcompile.transform_source import transform_source
from mpcompile.workload import load, source_name


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
    print_summary(summary, f"{source} in {mixed.plan.precision.name.lower()}, {how}", console)
    console.print(f"wrote {folder}/: {', '.join(files)}")
    write_json(json_to, {"source": source, "output": str(folder), **summary.to_dict()})


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
