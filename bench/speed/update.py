"""Time the update alone: ours, PyTorch's fused AdamW, and a plain copy of the same bytes.

``python -m bench.speed.update [--device cuda] [--millions 10 100 1000] [--json FILE]``

Ours is AdamW's update graph, lowered by mpcompile, on one arena: it reads 16-bit gradients,
unscales and checks them, and writes FP32 weights, both moments and the 16-bit weights that the next
step reads. PyTorch's is ``AdamW(fused=True)`` through `GradScaler` on FP32 gradients, so the
next forward pass must cast the weights. Each is timed on prepared gradients, so neither forward
nor backward runs.

Prints milliseconds, bytes per parameter by the models below, the resulting bandwidth, and its
ratio to that of a copy that moves as many bytes as ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import mpcompile
from bench.machine import describe as describe_machine
from mpcompile.lower.lower import Backend
from mpcompile.speed.timing import time_steps
from mpcompile.step.slots import Role

OURS = 8 + 8 + 8 + 2 + 2 + 2
"""Bytes per parameter: weight, first and second moment read and written, the gradient read and the
16-bit weight written (28 in all), and the gradient read once more for the finite check."""

FUSED = 8 + 8 + 8 + 4 + 4
"""The same for PyTorch: the FP32 gradient is read by the check and again by the update."""

LAYERS = 8


@dataclass(frozen=True)
class Row:
    """The measurements of one way.

    Attributes:
        way: the way that ran.
        parameters: number of trained parameters.
        milliseconds: median of a run.
        bytes: bytes that it moves by its model.
        of_copy: its bytes per second, relative to the copy.
    """

    way: str
    parameters: int
    milliseconds: float
    bytes: int
    of_copy: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return 1000 * self.bytes / self.milliseconds


def layers(parameters: int, device: str) -> nn.Sequential:
    """Return linears of about this many weights in all, without biases."""
    width = max(32, round(math.sqrt(parameters / LAYERS) / 32) * 32)
    with torch.device(device):
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Return a loss that reads every weight; it is captured and never run."""
    value: Tensor = model(x).square().mean()
    return value


def our_update(model: nn.Sequential, device: str, backend: Backend) -> Callable[[], Tensor]:
    """Return the update of a compiled step on random gradients."""
    width = next(model.parameters()).shape[1]
    x = torch.randn(8, width, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = mpcompile.compile(model, loss, optimizer, (x,), backend=backend)
    step._options.hand_over()
    inputs = []
    for name in step._lowered.update_inputs:
        slot = step.step.slots[name]
        random = slot.role is Role.GRADIENT
        inputs.append(
            torch.randn(slot.shape, dtype=slot.dtype, device=device)
            if random
            else step._state[name]
        )
    done = torch.zeros(())

    def update() -> Tensor:
        with torch.no_grad():
            step._lowered.update(*inputs)
        return done

    return update


def fused_update(model: nn.Sequential, device: str) -> Callable[[], Tensor]:
    """Return PyTorch's update on random gradients, unscaled and checked as in a loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device)
    done = torch.zeros((), device=device)
    scaler.scale(done)  # creates the scale that step() reads
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    def update() -> Tensor:
        scaler.step(optimizer)
        scaler.update()
        return done

    return update


def copy_of(total: int, device: str) -> Callable[[], Tensor]:
    """Return a copy that reads and writes this many bytes together."""
    source = torch.zeros(total // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    done = torch.zeros(())

    def copy() -> Tensor:
        target.copy_(source)
        return done

    return copy


def timed(make: Callable[[], Callable[[], Tensor]], device: str, runs: int) -> float:
    """Return the median milliseconds of a run after warm-up; free all memory afterwards."""
    run = make()
    for _ in range(3):
        run()
    times, _ = time_steps(run, runs, device)
    del run
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return median(times)


def measure(millions: int, device: str, runs: int, backend: Backend) -> list[Row]:
    """Time the three ways at one size."""
    wanted = 1_000_000 * millions
    count = sum(p.numel() for p in layers(wanted, "meta").parameters())
    copied = timed(lambda: copy_of(OURS * count, device), device, runs)
    rate = OURS * count / copied
    rows = [Row("copy", count, copied, OURS * count, 1.0)]
    ways: dict[str, tuple[int, Callable[[], Callable[[], Tensor]]]] = {
        "ours": (OURS, lambda: our_update(layers(wanted, device), device, backend)),
        "fused": (FUSED, lambda: fused_update(layers(wanted, device), device)),
    }
    for way, (each, make) in ways.items():
        took = timed(make, device, runs)
        rows.append(Row(way, count, took, each * count, each * count / took / rate))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--millions", nargs="+", type=int, help="default: 10 100 1000, CPU: 1 10")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--backend", default="inductor", choices=("inductor", "interpreter"))
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    sizes = options.millions or ([10, 100, 1000] if options.device == "cuda" else [1, 10])
    document: dict[str, Any] = {"machine": describe_machine(options.device), "rows": []}
    print(f"{'parameters':>13} {'way':<6}{'ms':>10}{'B each':>8}{'GB/s':>9}{'of copy':>9}")
    for millions in sizes:
        for row in measure(millions, options.device, options.runs, options.backend):
            each = row.bytes // row.parameters
            print(
                f"{row.parameters:>13,} {row.way:<6}{row.milliseconds:>10.3f}{each:>8}"
                f"{row.bandwidth / 1e9:>9.1f}{row.of_copy:>9.2f}",
                flush=True,
            )
            document["rows"].append(asdict(row) | {"bandwidth": row.bandwidth})
        if options.json:
            options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
