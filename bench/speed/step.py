"""Time a training step side by side: eager FP32, autocast, `torch.compile` and ours.

``python -m bench.speed.step --model gpt [--size small] [--device cuda] [--json FILE]``

Runs each variant in a process of its own (`bench/speed/variant.py`), in turn, ``--repeats`` rounds,
and prints a table (`bench/speed/step_table.py`). The first round of each variant compiles from an
empty cache, and counts casts and kernels.

On CUDA all run in float16. On the CPU autocast and ours run in bfloat16, because the CPU's FP16
kernels are of no practical use; ours in pseudo FP16 is shown for information only. ``--budget``
limits the seconds of the whole run; measurements until then are kept.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.speed.step_table import table
from bench.speed.variant import SIZES, TINY
from mpcompile.speed.peers import VARIANTS
from mpcompile.speed.side_by_side import Found, compare, run_process, said, summarize

# The most important variants come first, so that a slow compilation costs only later ones.
DEFAULT = {
    "cpu": ("ours", "compiled", "autocast", "fp32", "compiled-fp32", "ours-interpreter"),
    "cuda": (
        "ours", "compiled", "autocast", "fp32", "tf32", "compiled-fp32", "compiled-cudagraphs",
        "compiled-autotune", "ours-autotune",
    ),
}  # fmt: skip


def run_once(name: str, options: argparse.Namespace, cache: Path, limit: float, turn: int) -> Found:
    """Run one variant in its own process; an error is returned under ``error``."""
    command = ["-m", "bench.speed.variant", name]
    for option in ("model", "size", "device", "warmup", "steps"):
        command += [f"--{option}", str(getattr(options, option))]
    command += ["--loss-seconds", str(options.loss_seconds)]
    if not turn:
        command.append("--counts")
    return run_process(command, cache, name, limit)


def main() -> None:
    """Run all variants, print the table, write the JSON file after every run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, choices=TINY)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: by device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps per round")
    parser.add_argument("--loss-seconds", type=float, default=10.0, help="for going on to step 100")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds for everything")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    names = options.variants or DEFAULT[options.device]
    end = time.monotonic() + options.budget
    # Sent by timeout(1); `run_process` ends its process on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Computed in another process, so that this one keeps no memory on the device.
    machine = subprocess.run(
        [sys.executable, "-m", "bench.machine", options.device],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    arguments = {key: str(value) for key, value in vars(options).items()}
    runs: dict[str, list[Found]] = {name: [] for name in names}
    longest = dict.fromkeys(names, 5.0)
    document: dict[str, Any] = {
        "model": options.model,
        "size": options.size,
        "machine": json.loads(machine.stdout),
        "arguments": arguments,
        "variants": {name: {"runs": []} for name in names},
    }
    with tempfile.TemporaryDirectory(prefix="mpcompile-bench-") as cache:
        for turn in range(options.repeats):
            for place, name in enumerate(names):
                left = end - time.monotonic()
                failed = bool(runs[name]) and "error" in runs[name][-1]
                if failed or left < longest[name] or (turn and VARIANTS[name].information):
                    continue
                # A slow variant must leave time for the later ones.
                limit = min(left, 1.5 * left / (len(names) - place)) if place > 1 else left
                begin = time.monotonic()
                runs[name].append(run_once(name, options, Path(cache), limit, turn))
                took = time.monotonic() - begin
                if turn:  # the first time from an empty cache
                    longest[name] = max(longest[name], took)
                last = runs[name][-1]
                outcome = (
                    said(last["error"])
                    if "error" in last
                    else f"{median(last['times_ms']):.3f} ms a step"
                )
                print(f"{name}: {outcome}; {took:.0f} s in all", file=sys.stderr, flush=True)
                variants = {key: summarize(value) for key, value in runs.items()}
                peers = {name for name in names if VARIANTS[name].peer}
                document |= {"variants": variants, **compare(variants, peers)}
                if options.json:
                    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    if any("median_ms" not in found for found in document["variants"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
