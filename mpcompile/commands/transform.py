"""What the commands do, once torch is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import check_free, write_folder, write_json
from mpcompile.commands.load_program import transform_source
from mpcompile.pipeline import transform as transform_workload
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.plan.ranges import Ranges
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import source_name
from mpcompile.settings import find_settings
from mpcompile.show.of_step import view_of
from mpcompile.show.summary import print_summary, summarize
from mpcompile.show.view import BEFORE, PLAN, VIEW
from mpcompile.step.transformed import Choices, Transformed


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
        plain = transform_workload(mixed.workload, Choices(policy=FULL_PRECISION))
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
    how = f"by {plan}" if plan else f"level {mixed.choices.policy.level.value}"
    print_summary(summary, f"{source} in {mixed.plan.precision.name.lower()}, {how}", console)
    console.print(f"wrote {folder}/: {', '.join(files)}")
    write_json(json_to, {"source": source, "output": str(folder), **summary.to_dict()})


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
