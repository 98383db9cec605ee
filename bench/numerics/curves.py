"""Draw the loss curves of mixed precision beside those of FP32.

``python -m bench.numerics.curves [--steps 200] [--models resnet gpt lstm] [--output docs]``

Trains each model (small size, CPU) from the same seed in FP32 and in mixed precision by the default
policy, and in FP32 from two more seeds. A seed sets both the weights and the order of the data.
Writes ``curves/MODEL.csv``, ``curves.svg`` and ``curves.md`` into the output folder and prints the
table of ``curves.md``. Mixed precision must change the final loss by less than the seeds do.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import torch

import mpcompile
from bench.machine import describe
from bench.root import ROOT
from mpcompile.program.workload import Workload, load

MODELS = ("resnet", "gpt", "lstm")
LAST = 10
"""Steps at the end whose mean is the final loss."""
RUNS = (
    ("fp32 seed 0", mpcompile.FULL_PRECISION, 0),
    ("mixed seed 0", mpcompile.Policy(), 0),
    ("fp32 seed 1", mpcompile.FULL_PRECISION, 1),
    ("fp32 seed 2", mpcompile.FULL_PRECISION, 2),
)


@dataclass(frozen=True)
class Curve:
    """One training run."""

    losses: list[float]
    scale: float
    skipped: int

    @property
    def final(self) -> float:
        """Return the mean loss of the last steps."""
        return mean(self.losses[-LAST:])


def batches(workload: Workload) -> Iterator[tuple[Any, ...]]:
    """Yield batches without end, epoch after epoch."""
    assert workload.data is not None
    while True:
        yield from workload.data


def train(model: str, policy: mpcompile.Policy, seed: int, steps: int) -> Curve:
    """Train a model of ``models/`` from a seed."""
    os.environ.update(SIZE="small", DEVICE="cpu", SEED=str(seed))
    workload = load(str(ROOT / "models" / f"{model}.py"))
    assert workload.loss is not None
    assert workload.optimizer is not None
    step = mpcompile.compile(
        workload.model,
        workload.loss,
        workload.optimizer,
        workload.batch,
        policy=policy,
        backend="interpreter",
    )
    torch.manual_seed(seed)  # dropout: the same random numbers in every precision
    data = batches(workload)
    losses = [float(step(*next(data))) for _ in range(steps)]
    return Curve(losses, step.loss_scale, step.skipped)


def write_csv(path: Path, curves: dict[str, Curve]) -> None:
    """Write one row per step and one column per run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *curves])
        rows = zip(*(curve.losses for curve in curves.values()), strict=True)
        for number, row in enumerate(rows, start=1):
            writer.writerow([number, *(f"{loss:.6g}" for loss in row)])


def plot(path: Path, models: dict[str, dict[str, Curve]]) -> None:
    """Draw one panel per model."""
    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "curves", "font.size": 10})
    from matplotlib import pyplot as plt  # after the backend is selected

    looks: dict[str, dict[str, Any]] = {
        "fp32 seed 1": {"color": "#bbbbbb", "linewidth": 1.2, "label": "FP32, seed 1"},
        "fp32 seed 2": {"color": "#888888", "linewidth": 1.2, "label": "FP32, seed 2"},
        "fp32 seed 0": {"color": "#0072b2", "linewidth": 2.4, "label": "FP32, seed 0"},
        "mixed seed 0": {
            "color": "#e69f00",
            "linewidth": 1.2,
            "linestyle": (0, (4, 2)),
            "label": "mixed, seed 0",
        },
    }
    figure, panels = plt.subplots(
        1, len(models), figsize=(4.2 * len(models), 3.6), layout="constrained", squeeze=False
    )
    for panel, (model, curves) in zip(panels[0], models.items(), strict=True):
        for run, look in looks.items():
            losses = curves[run].losses
            panel.plot(range(1, len(losses) + 1), losses, **look)
        panel.set_title(model)
        panel.set_xlabel("step")
        panel.grid(color="#eeeeee")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("training loss")
    panels[0][-1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def table(models: dict[str, dict[str, Curve]]) -> str:
    """Return the final losses as a Markdown table."""
    lines = [
        "| model | FP32 seed 0 | FP32 seed 1 | FP32 seed 2 | mixed seed 0 | spread of FP32 "
        "| mixed - FP32 (seed 0) | smaller than the spread | inside the FP32 range "
        "| final loss scale | skipped steps |",
        "|---|---:|---:|---:|---:|---:|---:|---|---|---:|---:|",
    ]
    for model, curves in models.items():
        full = [curves[f"fp32 seed {seed}"].final for seed in range(3)]
        mixed = curves["mixed seed 0"]
        low, high = min(full), max(full)
        change = mixed.final - full[0]
        lines.append(
            f"| {model} | {full[0]:.4f} | {full[1]:.4f} | {full[2]:.4f} | {mixed.final:.4f} "
            f"| {high - low:.4f} | {change:+.4f} | {_yes(abs(change) <= high - low)} "
            f"| {_yes(low <= mixed.final <= high)} | {mixed.scale:g} | {mixed.skipped} |"
        )
    return "\n".join(lines)


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def page(models: dict[str, dict[str, Curve]], steps: int, command: str) -> str:
    """Return ``curves.md``."""
    machine = describe("cpu")
    return f"""# Loss curves: mixed precision beside FP32

![Training loss by step, one panel per model](curves.svg)

Final loss: the mean of the last {min(LAST, steps)} of {steps} steps, small sizes.
A seed chooses the initial weights and the order of the data.
The spread is the largest less the smallest of the three FP32 losses. Mixed precision of seed 0
follows FP32 of seed 0. If FP32 of seed 0 is the largest or the smallest of the three, mixed
precision can be slightly outside their range. The test is that the precision changes the loss by
less than the seed does.
Mixed precision is the default policy with the default dynamic loss scale, computed on the CPU in
pseudo FP16 (FP16 operands and results, FP32 arithmetic).

{table(models)}

Every step's loss is in [curves/](curves/).

Written by `{command}` on {machine["date"]}: {machine["device"]}, {machine["cores"]} cores,
torch {machine["torch"]}, Python {machine["python"]}, commit {machine["commit"]}.
"""


def main() -> None:
    """Train, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    folder: Path = options.output
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    models: dict[str, dict[str, Curve]] = {}
    for model in options.models:
        curves: dict[str, Curve] = {}
        for name, policy, seed in RUNS:
            begin = time.perf_counter()
            curves[name] = train(model, policy, seed, options.steps)
            print(
                f"{model} {name}: loss {curves[name].losses[0]:.4f} -> {curves[name].final:.4f} "
                f"in {time.perf_counter() - begin:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        models[model] = curves
        write_csv(folder / "curves" / f"{model}.csv", curves)
    plot(folder / "curves.svg", models)
    command = " ".join(["python -m bench.numerics.curves", *sys.argv[1:]])
    (folder / "curves.md").write_text(page(models, options.steps, command))
    print(table(models))


if __name__ == "__main__":
    main()
