"""Time the proof on the first batch, beside a step of eager PyTorch, by processor time.

``python -m bench.speed.proof [--models gpt ...] [--size small] [--rounds 8]``

Each round runs a step of eager PyTorch, forward and backward alone, and the proof, in turn, on one
thread. Prints the least milliseconds of each, the proof in eager steps, and what of the proof is
neither of its two runs of forward and backward: copies, comparisons and the walk over what the
program can read. Processor time, because other load on the machine does not add to it as it does
to time by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.machine import describe
from bench.speed.variant import SIZES, TINY, load
from mpcompile.program.capture import capture
from mpcompile.program.proof.effects import Effects
from mpcompile.program.proof.verify import verify

ROUNDS = 8
MODELS = ("gpt", "resnet", "lstm", "bert")


def least(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the least processor time of each function in milliseconds; they take turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            found[name] = min(found[name], 1000 * (time.process_time() - begin))
    return found


def times(model: str, size: str, rounds: int) -> dict[str, float]:
    """Return the milliseconds of an eager step, of its forward and backward, and of the proof."""
    workload = load(model, size, "cpu")
    forward, optimizer = capture(workload), workload.optimizer
    assert optimizer is not None

    def passes() -> None:
        optimizer.zero_grad()
        result = workload.run(workload.model, workload.batch)
        (result[0] if isinstance(result, tuple) else result).backward()

    def step() -> None:
        passes()
        optimizer.step()

    def proof() -> None:
        optimizer.zero_grad()
        verify(workload, forward, Effects(workload))

    return least({"step": step, "passes": passes, "proof": proof}, rounds)


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=TINY)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("eager step", "its passes", "proof", "steps", "no run")
    print(f"{'model':>8}", *(f"{name:>11}" for name in names))
    for model in options.models:
        found = times(model, options.size, options.rounds)
        rest = found["proof"] - 2 * found["passes"]
        row = (found["step"], found["passes"], found["proof"])
        cells = [*(f"{value:.1f}" for value in row), f"{row[2] / row[0]:.2f}", f"{rest:.1f}"]
        print(f"{model:>8}", *(f"{cell:>11}" for cell in cells), flush=True)
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
