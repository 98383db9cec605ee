"""Time a step of ``train.onnx`` in ONNX Runtime beside eager PyTorch, autocast and our inductor.

``python -m bench.onnx.step [--models gpt ...] [--sizes tiny small] [--json FILE]``

Each model is exported once in FP16 and once in FP32. All ways are warmed up in one process, then
one step of each is timed in turn, so that other load on the machine slows all of them. Prints the
median milliseconds of each and, in brackets, the speed relative to eager FP32. Every step is timed
to its end: on CUDA the host waits for it. ONNX Runtime has as many threads as PyTorch.

On a CPU 16 bits are BF16 for autocast and for ours; ONNX Runtime has no BF16 matmul there and runs
most FP16 ops in FP32 between casts. On CUDA all are FP16, state is bound on the device, and
``onnx-graph`` is the same step as two CUDA graphs. Without ONNX Runtime for CUDA it prints that
and ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from bench.machine import describe as describe_machine
from bench.speed.pair import WARM_UP, turn_by_turn
from bench.speed.variant import SIZES, TINY, load
from mpcompile.errors import CompileError
from mpcompile.pipeline import transform
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.speed.peers import VARIANTS, stepper
from mpcompile.step.transformed import Choices

Device = Literal["cpu", "cuda"]
WAYS: dict[Device, tuple[str, ...]] = {
    "cpu": ("fp32", "autocast", "ours", "onnx", "onnx-fp32"),
    "cuda": ("fp32", "autocast", "ours", "onnx", "onnx-graph"),
}
MODELS = ("gpt", "resnet", "lstm")


def in_onnx(model: str, size: str, way: str, device: Device) -> Callable[[], Any]:
    """Export a model's step and return a function that runs it to its end."""
    from mpcompile.onnx.step_export import export_step
    from mpcompile.onnx.train_step import OrtTrainStep

    workload = load(model, size, "cpu")
    policy = FULL_PRECISION if way == "onnx-fp32" else Policy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.onnx"
        export_step(transform(workload, Choices(policy=policy)), path)
        graph, threads = way == "onnx-graph", torch.get_num_threads()
        step = OrtTrainStep(path, device=device, cuda_graph=graph, threads=threads)
    batch = [value.to(device) for value in workload.batch]
    return lambda: step(*batch)


def in_torch(model: str, size: str, way: str, device: Device) -> Callable[[], Any]:
    """Return a function that runs a model's step in PyTorch to its end."""
    step = stepper(load(model, size, device), VARIANTS[way], device).step

    def run() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def timed(model: str, size: str, device: Device, steps: int) -> dict[str, list[float]]:
    """Return the milliseconds of each step of each way that works, warm."""
    runs = {}
    for way in WAYS[device]:
        make = in_onnx if way.startswith("onnx") else in_torch
        try:
            runs[way] = make(model, size, way, device)
            turn_by_turn({way: runs[way]}, WARM_UP)
        except CompileError as error:
            runs.pop(way, None)
            print(f"{model} {size} {way}: {error}", flush=True)
    return turn_by_turn(runs, steps)


def runtime(device: Device) -> str | None:
    """Return the version of an ONNX Runtime that can run on the device, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    version: str = onnxruntime.__version__
    return version if wanted in onnxruntime.get_available_providers() else None


def main() -> None:
    """Time, and print one line per model and size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=TINY)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=SIZES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each, at least 1")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    version = runtime(options.device)
    if version is None:
        print(f"there is no ONNX Runtime for {options.device} here: nothing is timed")
        return
    machine = describe_machine(options.device) | {"onnxruntime": version}
    document: dict[str, Any] = {"machine": machine, "times_ms": {}}
    print(json.dumps(machine))
    ways = WAYS[options.device]
    print(f"{'model':<16}" + "".join(f"{way + ' ms':>18}" for way in ways))
    for model in options.models:
        for size in options.sizes:
            times = timed(model, size, options.device, options.steps)
            document["times_ms"][f"{model} {size}"] = times
            middle = {way: median(found) for way, found in times.items()}
            base = middle.get("fp32")
            cells = [
                f"{middle[way]:>10.2f}" + (f" ({base / middle[way]:5.2f})" if base else "")
                if way in middle
                else "-"
                for way in ways
            ]
            print(f"{model + ' ' + size:<16}" + "".join(f"{c:>18}" for c in cells), flush=True)
            if options.json:
                options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
