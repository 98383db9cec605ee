"""Time the Python call of a step, with graphs that do nothing.

``python -m bench.speed.step_overhead`` prints microseconds per call for models of 2, 20 and
200 weights, as the median of seven rounds. Beside it is a call before which a number of the loss,
an input of the graph, gets a new value; the part of the check that nothing has changed in the
program; and the time of ``optimizer.zero_grad()`` without gradients, which eager PyTorch calls in
each step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import mpcompile
from bench.machine import describe
from mpcompile.lower import lower as lower_module
from mpcompile.lower import programs
from mpcompile.train.guards import Guard

CALLS, ROUNDS = 1000, 7


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return a loss that reads a number of the model."""
    return model(x).square().mean() * model.beta  # type: ignore[no-any-return]


def empty_step(
    layers: int,
) -> tuple[dict[str, Callable[[], Any]], Callable[[], bool], torch.optim.Optimizer]:
    """Return two calls of a step whose graphs return at once, its check, and its optimizer.

    The second call gives the number a new value first.
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
    calls = {"step": lambda: step(batch), "changed": changed}
    return calls, Guard(model, loss, optimizer).holds, optimizer


def microseconds(call: Callable[[], Any]) -> float:
    """Return the time of a call, as the median of some rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS)
    return 1e6 * median(times)


def main() -> None:
    """Print one row per size."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    names = ("step", "check", "zero_grad", "number")
    print(f"{'weights':>8}", *(f"{name + ', us':>13}" for name in names))
    for layers in (1, 10, 100):
        calls, check, optimizer = empty_step(layers)
        timed = (calls["step"], check, optimizer.zero_grad, calls["changed"])
        print(f"{2 * layers:>8}", *(f"{microseconds(each):>13.1f}" for each in timed))
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
