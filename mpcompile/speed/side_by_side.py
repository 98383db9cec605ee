"""Run each variant in a process of its own, and compare the measurements.

In its own process each variant has its own memory peak, its own compilation from an empty cache and
its own settings of torch, and an error in one variant does not stop the others.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Found = dict[str, Any]


def run_process(command: Sequence[str], folder: Path, name: str, limit: float) -> Found:
    """Run a Python program whose last line is one JSON object, and return the object.

    If the program fails, the result has only the key ``error``.

    Args:
        command: arguments after ``python``.
        folder: a temporary folder; inductor's cache for this variant is in it.
        name: the name of the variant.
        limit: seconds after which the process is ended.
    """
    paths = [str(Path(str(files("mpcompile"))).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),  # import the same mpcompile
        "TORCHINDUCTOR_CACHE_DIR": str(folder / name),
    }
    # The process group is ended as a whole, because inductor leaves worker processes behind.
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as wrong:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=out, stderr=wrong, env=environment, process_group=0
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {limit:.0f} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        wrong.seek(0)
        if status:
            return {"error": f"exit status {status}\n{wrong.read().strip()[-4000:]}"}
        result: Found = json.loads(out.read().splitlines()[-1])
        return result


def said(error: str) -> str:
    """Return the line that names the exception, or the last line if there is no such line."""
    lines = error.rpartition("Traceback (most recent call last)")[2].splitlines()
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: \S", line)]
    return named[0] if named else lines[-1]


def summarize(runs: list[Found]) -> Found:
    """Join the rounds of one variant; without a good round there is no ``median_ms``.

    Values other than times and memory come from the first good round, which compiles from an empty
    cache.
    """
    good = [run for run in runs if "error" not in run]
    if not good:
        return {"runs": runs}
    times = [value for run in good for value in run["times_ms"]]
    deciles = quantiles(times, n=10, method="inclusive")
    rest = {key: value for key, value in good[0].items() if key != "times_ms"}
    return rest | {
        "median_ms": median(times),
        "p10_ms": deciles[0],
        "p90_ms": deciles[-1],
        "round_medians_ms": [median(run["times_ms"]) for run in good],
        "samples_per_s": 1000 * good[0]["batch"] / median(times),
        "memory": max(run["memory"] for run in good),
        "runs": runs,
    }


def compare(
    variants: dict[str, Found], peers: Collection[str], compiled: str = "compiled"
) -> Found:
    """Compare every variant with the best peer, by time and by memory; return the best peers.

    Each variant gets ``times_faster_than_best_peer`` (above 1: faster), ``memory_of_best_peer``
    (below 1: less, of the peer that needs least) and ``setup_of_compiled`` (below 1: quicker).

    Args:
        variants: summaries by name; changed.
        peers: names of the variants to compare with.
        compiled: name of the variant that is `torch.compile` of the same program.
    """
    there = {name: found for name, found in variants.items() if "median_ms" in found}
    rivals = [name for name in there if name in peers]
    if not rivals:
        return {}
    fastest = min(rivals, key=lambda name: float(there[name]["median_ms"]))
    leanest = min(rivals, key=lambda name: float(there[name]["memory"]))
    for found in there.values():
        found["times_faster_than_best_peer"] = there[fastest]["median_ms"] / found["median_ms"]
        found["memory_of_best_peer"] = found["memory"] / there[leanest]["memory"]
        if compiled in there:
            found["setup_of_compiled"] = found["setup_s"] / there[compiled]["setup_s"]
    return {"best_peer": fastest, "leanest_peer": leanest}
