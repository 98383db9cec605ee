"""``mpcompile bench model.py``: a user's own step in mixed precision beside PyTorch's ways."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from mpcompile.artifacts import write_json
from mpcompile.commands.terminal import open_terminal
from mpcompile.errors import BadInput, CheckFailed
from mpcompile.options import BenchOptions
from mpcompile.program.workload import Workload, load
from mpcompile.speed.peers import VARIANTS, stepper
from mpcompile.speed.proof_cost import seconds_of_proof
from mpcompile.speed.side_by_side import Found, compare, run_process, said, summarize
from mpcompile.speed.timing import measure

COMPARED = {
    "fp32": "eager FP32",
    "autocast": "autocast",
    "compiled": "torch.compile",
    "ours": "mpcompile",
}
"""The variants and their names in the table; torch.compile runs with autocast too."""

LIMIT = 3600.0
"""Seconds after which a variant is stopped."""


def bench(source: str, options: BenchOptions) -> None:
    """Time a workload's step in each of `COMPARED`, print a table, write JSON.

    Each variant runs in a process of its own (`mpcompile.speed.side_by_side`), so the user's file
    is executed once per variant, and once here to report its errors early.

    Raises:
        BadInput: an argument or the workload is wrong.
        CheckFailed: a variant failed; the results of the others are printed.
    """
    steps, warmup = options.steps, options.warmup
    if steps < 2:
        raise BadInput(f"--steps is {steps}", fix="give at least 2")
    if warmup < 0:
        raise BadInput(f"--warmup is {warmup}", fix="give 0 or more")
    console = open_terminal(options.json)
    device = device_of(load(source))
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="mpcompile-bench-") as folder:
        for name, title in COMPARED.items():
            command = ["-m", "mpcompile.commands.bench", source, name, str(steps), str(warmup)]
            with console.status(f"timing {title}"):
                run = run_process(command, Path(folder), name, LIMIT)
            found[name] = summarize([run])
    ours, eager = found["ours"], found.get("fp32", {})
    if "verify_s" in ours and "median_ms" in eager:
        ours["verify_in_eager_steps"] = 1000 * ours["verify_s"] / eager["median_ms"]
    best = compare(found, {name for name in COMPARED if VARIANTS[name].peer})
    console.print(table_of(found, f"{source} on {device}, {steps} steps per variant"))
    write_json(options.json, {"source": source, "device": device, "variants": found, **best})
    failed = {
        name: run["runs"][0]["error"] for name, run in found.items() if "error" in run["runs"][0]
    }
    if failed:
        sentences = [f"{COMPARED[name]} failed ({said(text)})" for name, text in failed.items()]
        raise CheckFailed("; ".join(sentences), source)


ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("step, ms", "median_ms", 1, ".3f"),
    ("10th percentile, ms", "p10_ms", 1, ".3f"),
    ("90th percentile, ms", "p90_ms", 1, ".3f"),
    ("samples/s", "samples_per_s", 1, ",.0f"),
    ("peak MiB", "memory", 2**-20, ",.0f"),
    ("setup, s", "setup_s", 1, ".1f"),
    ("host waits", "syncs", 1, "d"),
    ("last loss", "loss", 1, ".4f"),
    ("speed / best peer's", "times_faster_than_best_peer", 1, ".2f"),
    ("memory / least peer's", "memory_of_best_peer", 1, ".2f"),
    ("setup / torch.compile's", "setup_of_compiled", 1, ".2f"),
    ("verify / eager step", "verify_in_eager_steps", 1, ".1f"),
)
"""Rows of the table: title, key in a summary, unit and format."""


def table_of(found: dict[str, Found], title: str) -> Table:
    """Return a table with one column per variant; a failed variant has no numbers."""
    table = Table("", title=title, title_justify="left")
    for name in found:
        table.add_column(COMPARED[name], justify="right")
    for label, key, unit, form in ROWS:
        cells = [run.get(key) for run in found.values()]
        table.add_row(label, *("-" if v is None else format(unit * v, form) for v in cells))
    return table


def device_of(workload: Workload) -> str:
    """Return the device a workload trains on: ``"cpu"`` or ``"cuda"``.

    Raises:
        BadInput: it has no loss, or is on another device.
    """
    if workload.loss is None:
        raise BadInput(
            "the workload has no loss and no optimizer",
            workload.origin,
            "add both, because a whole step is timed",
        )
    device = next(iter(workload.model.parameters())).device.type
    if device not in ("cpu", "cuda"):
        raise BadInput(
            f"the model is on {device}", workload.origin, "move the model to cpu or cuda"
        )
    return device


def samples(workload: Workload) -> int:
    """Return the number of samples in a batch: the first size of its first tensor, or 1."""
    sizes = getattr(workload.batch[0], "shape", ()) if workload.batch else ()
    return int(sizes[0]) if sizes else 1


def main(arguments: list[str] | None = None) -> None:
    """Time one variant in this process and print the measurements as JSON."""
    parser = argparse.ArgumentParser(prog="python -m mpcompile.commands.bench")
    parser.add_argument("source")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("steps", type=int)
    parser.add_argument("warmup", type=int)
    given = parser.parse_args(arguments)
    workload = load(given.source)
    device = device_of(workload)
    variant = VARIANTS[given.variant]
    found: dict[str, Any]
    _, found = measure(
        lambda: stepper(workload, variant, device), device, given.warmup, given.steps
    )
    if not variant.peer:
        found["verify_s"] = seconds_of_proof(workload)
    sys.stdout.write(json.dumps({"batch": samples(workload), **found}) + "\n")


if __name__ == "__main__":
    main()
