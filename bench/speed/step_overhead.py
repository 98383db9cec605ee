"""Time the Python call of a step, with graphs that do nothing.

``python -m bench.speed.step_overhead [--beside FOLDER] [--rounds 300]``

Prints microseconds per call for models of 2, 20 and 200 weights: the quickest round of 20 calls,
and the median round behind it, because other load on the machine only adds time. Beside the step is
the check alone that nothing has changed in the program; ``optimizer.zero_grad()`` without
gradients, which eager PyTorch calls in each step; and a step before which a number of the loss, an
input of the graph, gets a new value.

With ``--beside`` another checkout of this repository is timed too. Each has its own process, and
the two take turns round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import mpcompile
from bench.machine import describe
from mpcompile.lower import lower as lower_module
from mpcompile.lower import programs

CALLS, ROUNDS = 20, 300
LAYERS = (1, 10, 100)
NAMES = ("step", "check", "zero_grad", "number")
HERE = Path(__file__).resolve().parents[2]


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return a loss that reads a number of the model."""
    return model(x).square().mean() * model.beta  # type: ignore[no-any-return]


def calls_of(layers: int) -> dict[str, Callable[[], Any]]:
    """Return the calls that are timed, by name, of a step whose graphs return at once.

    The call ``number`` gives the number a new value first.
    """
    model: Any = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(2, 4)
    model.beta = 0.0

    def lower(*arguments: Any) -> lower_module.Lowered:
        made = lower_module.lower(*arguments)
        results = [torch.zeros(()) for _ in made.gradient_results]
        return replace(made, gradient=lambda *_: results, update=lambda *_: None)

    with patch.object(programs, "lower", lower):
        step = mpcompile.compile(model, loss, optimizer, (batch,), backend="interpreter")

        def changed() -> None:
            model.beta += 0.001
            step(batch)

        for _ in range(3):  # then it is an input
            changed()
    check = step._guard.holds
    return dict(zip(NAMES, (lambda: step(batch), check, optimizer.zero_grad, changed), strict=True))


def microseconds(call: Callable[[], Any]) -> float:
    """Return the time of a call, over one round."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return 1e6 * (time.perf_counter() - start) / CALLS


def take_turns() -> None:
    """For each line that comes in, time one round of everything and write it as one line."""
    calls = [calls_of(layers) for layers in LAYERS]
    for _ in sys.stdin:
        times = [{name: microseconds(call) for name, call in each.items()} for each in calls]
        print(json.dumps(times), flush=True)


def rounds_of(folders: list[Path], rounds: int, program: str = __file__) -> list[list[Any]]:
    """Return what each checkout has timed in each round; the checkouts take turns.

    Args:
        folders: the checkouts.
        rounds: how many.
        program: a file that writes a line of JSON for each line that it reads.
    """
    command = [sys.executable, program, "--turns"]
    running = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    found: list[list[Any]] = [[] for _ in folders]
    for _ in range(rounds):
        for process, times in zip(running, found, strict=True):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            times.append(json.loads(process.stdout.readline()))
    for process in running:
        process.communicate()
    return found


def main() -> None:
    """Print one row per checkout and size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--beside", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns:
        take_turns()
        return
    folders = [HERE] + ([options.beside.resolve()] if options.beside else [])
    print(f"{'weights':>8}", *(f"{name + ', us':>16}" for name in NAMES))
    for folder, rounds in zip(folders, rounds_of(folders, options.rounds), strict=True):
        if options.beside:
            print(folder)
        for index, layers in enumerate(LAYERS):
            columns = [[times[index][name] for times in rounds] for name in NAMES]
            row = (f"{min(column):.1f} ({median(column):.1f})" for column in columns)
            print(f"{2 * layers:>8}", *(f"{text:>16}" for text in row))
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
