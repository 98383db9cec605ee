"""Time two ways to run a step in turn in one process: for machines whose speed drifts.

``python -m bench.speed.pair [--models gpt ...] [--size small] [--steps 60] [--json FILE]``

Both are compiled and warmed up, then one step of each is timed in turn, so that other load on the
machine slows both. Prints the median and the 10th percentile of each, and the second way's median
divided by the first's: above 1, the first is faster. `bench/speed/step.py` measures the rest:
memory, setup, counts, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.machine import describe as describe_machine
from bench.speed.variant import SIZES, TINY, load
from mpcompile.speed.peers import VARIANTS, stepper

WARM_UP = 6


def turn_by_turn(runs: Mapping[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Run functions on the CPU in turn; return the milliseconds of each run."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))
    return times


def timed(model: str, size: str, ways: tuple[str, str], steps: int) -> dict[str, list[float]]:
    """Return the milliseconds of each step of both ways, warm."""
    runs = {name: stepper(load(model, size, "cpu"), VARIANTS[name], "cpu").step for name in ways}
    turn_by_turn(runs, WARM_UP)
    return turn_by_turn(runs, steps)


def main() -> None:
    """Time, and print one line per model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=list(TINY), choices=TINY)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each, at least 2")
    parser.add_argument("--ways", nargs=2, default=("ours", "compiled"), choices=VARIANTS)
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    first, second = options.ways
    document: dict[str, Any] = {"machine": describe_machine("cpu"), "times_ms": {}}
    print(document["machine"])
    print(f"{'model':<10}{first + ' ms':>14}{'p10':>9}{second + ' ms':>16}{'p10':>9}{'ratio':>8}")
    for model in options.models:
        times = timed(model, options.size, (first, second), options.steps)
        document["times_ms"][model] = times
        middle = {name: median(found) for name, found in times.items()}
        low = {name: quantiles(found, n=10)[0] for name, found in times.items()}
        print(
            f"{model:<10}{middle[first]:>14.2f}{low[first]:>9.2f}{middle[second]:>16.2f}"
            f"{low[second]:>9.2f}{middle[second] / middle[first]:>8.2f}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
