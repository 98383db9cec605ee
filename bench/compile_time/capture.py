"""Time capture and rewrite beside `torch.export` alone.

``python -m bench.compile_time.capture [--model gpt] [--runs 10] [--cold 3]``

Prints, as medians over ``--runs`` runs after a warm-up, the seconds of `torch.export` alone, of
`mpcompile.pipeline.transform` (everything before lowering) and of its stages, and the ratio
transform / export, which must stay below 2. Export and transform take turns, so that other load
on the machine affects both. Then the same ratio for a first call, each in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from bench.machine import describe
from bench.root import ROOT
from mpcompile import pipeline
from mpcompile.program import capture as program_capture
from mpcompile.program.tracing.export import export
from mpcompile.program.tracing.traced_program import TracedProgram
from mpcompile.program.workload import Workload, load

TARGET = 2.0

# The functions that `transform` calls in order, by the module that looks them up.
STAGES: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (program_capture, "export", ("torch.export",)),
    (pipeline, "capture", ("the rest of capture",)),
    (pipeline, "unfit_constants", ("look at constants",)),
    (pipeline, "describe", ("describe to the planner",)),
    (pipeline, "decide", ("plan",)),
    (
        pipeline,
        "run_passes",
        (
            "insert casts",
            "reshape matmuls",
            "passes before autograd",
            "gradient passes",
            "training passes",
        ),
    ),
    (pipeline, "differentiate", ("differentiate",)),
    (pipeline, "update_of", ("trace the update",)),
    (pipeline, "join", ("join the graphs",)),
)


@contextmanager
def stages(seconds: dict[str, float]) -> Iterator[None]:
    """Record how long each stage of `transform` takes, without the stages inside it."""
    inside = [0.0]

    def timed(function: Callable[..., Any], names: Iterator[str]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            name = next(names)
            inside.append(0.0)
            begin = time.perf_counter()
            result = function(*args, **options)
            whole = time.perf_counter() - begin
            seconds[name] = whole - inside.pop()
            inside[-1] += whole
            return result

        return call

    with ExitStack() as stack:
        for module, name, calls in STAGES:
            stack.enter_context(
                patch.object(module, name, timed(getattr(module, name), iter(calls)))
            )
        yield


def time_export(workload: Workload) -> float:
    """Return the seconds of `torch.export` on the program that `transform` exports."""
    program = TracedProgram(workload)
    gc.collect()
    begin = time.perf_counter()
    export(program, workload)
    return time.perf_counter() - begin


def time_transform(workload: Workload) -> dict[str, float]:
    """Return the seconds of `transform` and of its stages."""
    seconds: dict[str, float] = {}
    gc.collect()
    with stages(seconds):
        begin = time.perf_counter()
        pipeline.transform(workload)
        whole = time.perf_counter() - begin
    missing = {name for _, _, calls in STAGES for name in calls} - set(seconds)
    assert not missing, f"transform no longer calls {missing}"
    return {**seconds, "the rest": whole - sum(seconds.values()), "transform": whole}


def first_call(model: str, what: str, size: str) -> float:
    """Return the seconds of a process's first export or transform, imports not counted."""
    command = [sys.executable, "-m", "bench.compile_time.capture", "--first", what]
    command += ["--model", model, "--size", size]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="gpt", help="a name in models/, or a .py file")
    parser.add_argument("--size", default="small", choices=("small", "full"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--cold", type=int, default=3, help="processes per cold number")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--first", choices=("export", "transform"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["SIZE"] = options.size
    named = ROOT / "models" / f"{options.model}.py"
    workload = load(str(named) if named.exists() else options.model)
    if options.first:
        alone = options.first == "export"
        print(time_export(workload) if alone else time_transform(workload)["transform"])
        return

    time_export(workload)
    time_transform(workload)
    runs: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.runs):
        runs["export alone"].append(time_export(workload))
        for name, seconds in time_transform(workload).items():
            runs[name].append(seconds)
    warm = {name: median(values) for name, values in runs.items()}
    pairs = zip(runs["transform"], runs["export alone"], strict=True)
    ratios = sorted(whole / alone for whole, alone in pairs)
    document: dict[str, Any] = {
        "model": options.model,
        "size": options.size,
        "runs": options.runs,
        "machine": describe("cpu"),
        "seconds": warm,
        "ratio": warm["transform"] / warm["export alone"],
        "ratio_range": [ratios[0], ratios[-1]],
    }
    print(f"{options.model} ({options.size}), median of {options.runs} runs after a warm-up")
    for name, seconds in warm.items():
        print(f"  {name:<24} {1000 * seconds:9.1f} ms")
    print(
        f"  transform / export       {document['ratio']:9.2f}    "
        f"(target < {TARGET:g}; single runs {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    if options.cold:
        first: dict[str, list[float]] = {"export": [], "transform": []}
        for _ in range(options.cold):
            for what, values in first.items():
                values.append(first_call(options.model, what, options.size))
        cold = {what: median(values) for what, values in first.items()}
        document["cold"] = {**cold, "ratio": cold["transform"] / cold["export"]}
        print(f"first call in a process, median of {options.cold}")
        print(f"  export alone             {1000 * cold['export']:9.1f} ms")
        print(f"  transform                {1000 * cold['transform']:9.1f} ms")
        print(f"  transform / export       {document['cold']['ratio']:9.2f}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
