"""The table of `bench/speed/step.py`; each column is one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpcompile.speed.devices import DEVICES
from mpcompile.speed.side_by_side import Found, said

Value = float | str | None


def _casts(key: str, unit: float = 1.0) -> Callable[[Found], Value]:
    def value(found: Found) -> Value:
        count = found.get("casts", {}).get(key)
        return None if count is None else unit * count

    return value


def utilisation(found: Found) -> Value:
    """Return model FLOPs per second in percent of an H100's, for a run on one."""
    if not found.get("flops") or found.get("syncs") is None:  # waits are counted on CUDA only
        return None
    return float(100e3 * found["flops"] / found["median_ms"] / DEVICES["h100"].rate(torch.float16))


def over_bound(found: Found) -> Value:
    """Return the median step over the least time by `mpcompile.speed.least_time`."""
    least = found.get("bound_s")
    return None if not least else float(found["median_ms"] / 1e3 / least)


COLUMNS: tuple[tuple[str, int, str, Callable[[Found], Value]], ...] = (
    ("step ms", 10, ".3f", lambda run: run["median_ms"]),
    ("p10", 10, ".3f", lambda run: run["p10_ms"]),
    ("p90", 10, ".3f", lambda run: run["p90_ms"]),
    ("samples/s", 11, ".1f", lambda run: run["samples_per_s"]),
    ("MFU %", 7, ".1f", utilisation),
    ("/ bound", 9, ".2f", over_bound),
    ("MiB", 8, ".0f", lambda run: run["memory"] / 2**20),
    ("setup s", 9, ".1f", lambda run: run["setup_s"]),
    ("kernels", 9, ".0f", lambda run: run.get("kernels", run.get("generated_kernels"))),
    ("waits", 7, ".0f", lambda run: run["syncs"]),
    ("casts", 7, ".0f", _casts("casts")),
    ("MB cast", 9, ".2f", _casts("bytes", 1e-6)),
    ("of inputs", 11, ".0f", _casts("of_inputs")),
    ("loss", 9, ".4f", lambda run: run["loss"]),
    ("at 100", 9, ".4f", lambda run: run.get("loss_100")),
    ("x faster", 10, ".2f", lambda run: run.get("times_faster_than_best_peer")),
    ("memory", 8, ".2f", lambda run: run.get("memory_of_best_peer")),
    ("setup", 7, ".2f", lambda run: run.get("setup_of_compiled")),
)
"""Heading, width, format and value; None prints as a dash. The last three are ratios: times
faster than the fastest peer, memory over the smallest peer's, setup over that of torch.compile with
autocast."""


def cell(value: Value, form: str) -> str:
    """Return a value as text."""
    return "-" if value is None else format(value, form)


def table(document: dict[str, Any]) -> str:
    """Return the results as aligned text."""
    machine = document["machine"]
    versions = f"torch {machine['torch']}, Python {machine['python']}"
    if "driver" in machine:
        versions += f", driver {machine['driver']}"
    heads = "".join(f"{head:>{width}}" for head, width, _, _ in COLUMNS)
    lines = [
        f"{document['model']} ({document['size']}) on {machine['device']}, {versions}",
        f"{'variant':<20}{heads}  note",
    ]
    for name, found in document["variants"].items():
        if "median_ms" not in found:
            errors = [said(run["error"])[:160] for run in found["runs"]]
            lines.append(f"{name:<20}{'failed: ' + errors[-1] if errors else 'no time left'}")
            continue
        cells = "".join(f"{cell(value(found), form):>{width}}" for _, width, form, value in COLUMNS)
        lines.append(f"{name:<20}{cells}  {found['note']}")
    if "best_peer" in document:
        lines.append(f"best peer: {document['best_peer']}; leanest: {document['leanest_peer']}")
    return "\n".join(lines)
