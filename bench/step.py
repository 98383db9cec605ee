"""Time a training step side by side: eager FP32, autocast, `torch.compile` and ours.

``PYTHONPATH=. python bench/step.py --model gpt [--size small] [--device cuda] [--json FILE]``

Runs each variant in a process of its own (`bench/variant.py`), in turn, ``--repeats`` rounds, and
prints a table: median, 10th and 90th percentile of the step time over all rounds, samples per
second, peak memory, setup (capture, compilation and the first step, from an empty cache), waits of
the host per step, the loss of the last step, and how many times faster than the best peer.

On CUDA all run in float16. On the CPU autocast and ours run in bfloat16, since the CPU's FP16
kernels are no use to anybody; ours in pseudo FP16 is shown for information only. ``--budget``
seconds bound the whole; what is measured until then is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from variant import TINY, VARIANTS

HERE = Path(__file__).resolve().parent
# The cheap and certain ones first, so that a slow compilation costs only what is after it.
DEFAULT = {
    "cpu": ("fp32", "autocast", "ours", "compiled", "ours-interpreter"),
    "cuda": ("fp32", "autocast", "ours", "compiled"),
}


def run_once(name: str, options: argparse.Namespace, cache: Path, limit: float) -> dict[str, Any]:
    """Run one variant in its own process; what went wrong is returned under ``error``."""
    command = [sys.executable, str(HERE / "variant.py"), name]
    for option in ("model", "size", "device", "warmup", "steps"):
        command += [f"--{option}", str(getattr(options, option))]
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / name),
    }
    # A group of its own, ended as a whole: inductor leaves worker processes behind.
    with (cache / "stdout").open("w+") as out, (cache / "stderr").open("w+") as wrong:
        process = subprocess.Popen(
            command, stdout=out, stderr=wrong, env=environment, process_group=0
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
        result: dict[str, Any] = json.loads(out.read().splitlines()[-1])
        return result


def said(error: str) -> str:
    """Return the line that says what went wrong: the exception's own, else the last."""
    lines = error.rpartition("Traceback (most recent call last)")[2].splitlines()
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: \S", line)]
    return named[0] if named else lines[-1]


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Pool the rounds of one variant."""
    good = [run for run in runs if "error" not in run]
    if not good:
        return {"runs": runs}
    times = [value for run in good for value in run["times_ms"]]
    deciles = quantiles(times, n=10, method="inclusive")
    return {
        "median_ms": median(times),
        "p10_ms": deciles[0],
        "p90_ms": deciles[-1],
        "round_medians_ms": [median(run["times_ms"]) for run in good],
        "samples_per_s": 1000 * good[0]["batch"] / median(times),
        "memory": max(run["memory"] for run in good),
        "setup_s": good[0]["setup_s"],
        "syncs": good[0]["syncs"],
        "loss": good[0]["loss"],
        "note": good[0]["note"],
        "runs": runs,
    }


def compare(variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Name the fastest peer and relate every variant to it."""
    peers = [
        name for name, found in variants.items() if VARIANTS[name].peer and "median_ms" in found
    ]
    if not peers:
        return {}
    best = min(peers, key=lambda name: float(variants[name]["median_ms"]))
    for found in variants.values():
        if "median_ms" in found:
            found["times_faster_than_best_peer"] = variants[best]["median_ms"] / found["median_ms"]
            found["memory_of_best_peer"] = found["memory"] / variants[best]["memory"]
    return {"best_peer": best}


def table(document: dict[str, Any]) -> str:
    """Return the results as aligned text."""
    machine = document["machine"]
    versions = f"torch {machine['torch']}, Python {machine['python']}"
    if "driver" in machine:
        versions += f", driver {machine['driver']}"
    lines = [
        f"{document['model']} ({document['size']}) on {machine['device']}, {versions}",
        f"{'variant':<20}{'step ms':>10}{'p10':>10}{'p90':>10}{'samples/s':>11}{'MiB':>9}"
        f"{'setup s':>9}{'waits':>7}{'loss':>10}{'x best peer':>13}  note",
    ]
    for name, found in document["variants"].items():
        if "median_ms" not in found:
            errors = [said(run["error"])[:160] for run in found["runs"]]
            lines.append(f"{name:<20}{'failed: ' + errors[-1] if errors else 'no time left'}")
            continue
        faster = found.get("times_faster_than_best_peer", float("nan"))
        waits = "-" if found["syncs"] is None else found["syncs"]
        lines.append(
            f"{name:<20}{found['median_ms']:>10.3f}{found['p10_ms']:>10.3f}"
            f"{found['p90_ms']:>10.3f}{found['samples_per_s']:>11.1f}"
            f"{found['memory'] / 2**20:>9.0f}{found['setup_s']:>9.1f}{waits:>7}"
            f"{found['loss']:>10.4f}{faster:>13.2f}  {found['note']}"
        )
    if "best_peer" in document:
        lines.append(f"best peer: {document['best_peer']}")
    return "\n".join(lines)


def main() -> None:
    """Run all variants, print the table, write the JSON file after every run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, choices=TINY)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "full"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: by device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps per round")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds for everything")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    names = options.variants or DEFAULT[options.device]
    end = time.monotonic() + options.budget
    # Sent by timeout(1); `run_once` ends its process on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Asked for in another process: this one keeps no memory on the device.
    machine = subprocess.run(
        [sys.executable, str(HERE / "machine.py"), options.device],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    arguments = {key: str(value) for key, value in vars(options).items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
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
                # A slow variant must leave something for those after it.
                limit = min(left, 1.5 * left / (len(names) - place))
                begin = time.monotonic()
                runs[name].append(run_once(name, options, Path(cache), limit))
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
                document |= {"variants": variants, **compare(variants)}
                if options.json:
                    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    if any("median_ms" not in found for found in document["variants"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
