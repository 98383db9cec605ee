"""Time a step in pieces beside `torch.compile` with autocast of the same program, in one process.

``python -m bench.speed.pieces [--programs transformer ...] [--steps 100] [--json FILE]``

Each program looks at a value, so no single graph holds it. Both ways use inductor on the CPU. The
peer is ``torch.compile(loss)`` in `torch.autocast`, with `GradScaler` for FP16 and the fused
optimizer. After a warm-up one step of each is timed in turn. The ratio is our time over that of the
peer in the same turn: the median of all turns, and between which ratios the middle half of them is.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import describe as describe_machine
from bench.speed.pair import turn_by_turn
from mpcompile.lower.lower import Lowering
from mpcompile.pipeline import to_step, transform
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.workload import Workload
from mpcompile.speed.peers import Variant, peer
from mpcompile.step.transformed import Choices

WARM_UP = 10
PRECISIONS = {"bf16": Precision.BF16, "fp16": Precision.FP16, "fp32": Precision.FP32}


class Transformer(nn.Module):
    """Four layers of attention and a head over 2,000 words."""

    def __init__(self, width: int = 256, words: int = 2000, length: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(4)
        )
        self.head = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape ``[batch, length, words]``."""
        out = self.words(x) + self.places
        for layer in self.layers:
            out = layer(out)
        result: Tensor = self.head(out)
        return result


def transformer() -> Workload:
    """Halve a large loss."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        if value.item() > 100:
            value = value * 0.5
        return value

    words = torch.randint(2000, (2, 8, 32))
    return _workload(Transformer(), loss, (words[0], words[1]))


def images() -> Workload:
    """Mean over the bright places of each image, whose number decides what is computed."""
    widths = (3, 32, 64, 64)
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(widths[-1], 8, 1))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out, parts = model(x), []
        for image, logits, label in zip(x, out, y, strict=True):
            bright = int((image[0] > 1).sum())
            scores = logits.flatten(1).mean(1) if bright > 100 else logits.amax((1, 2))
            parts.append(functional.cross_entropy(scores, label))
        return torch.stack(parts).mean()

    return _workload(model, loss, (torch.randn(4, 3, 32, 32), torch.randint(8, (4,))))


def branch() -> Workload:
    """Reduce a large loss of a very small net: the time is that of Python."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = functional.cross_entropy(model(x), y)
        if value.item() > 100:
            value = value * 0.1
        return value

    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return _workload(model, loss, (torch.randn(8, 16), torch.randint(4, (8,))))


PROGRAMS: dict[str, Callable[[], Workload]] = {
    "transformer": transformer,
    "images": images,
    "branch": branch,
}


def _workload(model: nn.Module, loss: Callable[..., Any], batch: tuple[Tensor, ...]) -> Workload:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Workload(model, batch, loss, optimizer)


def made(program: str, precision: Precision, ours: bool) -> Callable[[], Any]:
    """Return a step of a program, not yet compiled.

    Args:
        program: a name of `PROGRAMS`.
        precision: of both ways.
        ours: whether it is our step or the peer's.
    """
    torch.manual_seed(0)
    workload = PROGRAMS[program]()
    if not ours:
        cast = precision is not Precision.FP32
        dtype = {Precision.FP16: torch.float16}.get(precision, torch.bfloat16)
        return peer(workload, Variant(peer=True, cast=cast, fused=True), dtype, "cpu").step
    choices = Choices(policy=Policy(precision=precision), whole=False)
    step = to_step(transform(workload, choices), Lowering("inductor"))
    return lambda: step(*workload.batch)


def timed(program: str, precision: Precision, steps: int) -> dict[str, list[float]]:
    """Return the milliseconds of each step of both ways, warm."""
    runs = {
        name: made(program, precision, ours)
        for name, ours in (("ours", True), ("torch.compile", False))
    }
    turn_by_turn(runs, WARM_UP)
    return turn_by_turn(runs, steps)


def main() -> None:
    """Time, and print one line per program and precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each, at least 2")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: one per core")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    document: dict[str, Any] = {"machine": describe_machine("cpu"), "times_ms": {}}
    print(document["machine"])
    print(f"{'program':<14}{'':<6}{'ours ms':>9}{'compile ms':>12}{'ratio':>8}  middle half")
    for program in options.programs:
        for precision in options.precisions:
            torch.compiler.reset()
            times = timed(program, PRECISIONS[precision], options.steps)
            document["times_ms"][f"{program} {precision}"] = times
            ours, theirs = times.values()
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            print(
                f"{program:<14}{precision:<6}{median(ours):>9.2f}{median(theirs):>12.2f}"
                f"{middle:>8.2f}  {low:.2f} to {high:.2f}",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
