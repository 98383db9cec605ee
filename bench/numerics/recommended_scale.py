"""Compare the loss scale of ``mpcompile gradients`` with the one that a dynamic scale finds.

``python -m bench.numerics.recommended_scale [--steps 200] [--models gpt bert lstm resnet]``

Takes each model at its small size on the CPU, recommends a scale from eight batches at the first
weights, and trains with a dynamic scale that starts at 2^24 and grows after 10 clean steps, so that
it soon falls to the values that the gradients allow and keeps trying larger ones. Then it
recommends again, at the trained weights. Prints a Markdown table: for the dynamic scale, the range
over the second half of training and its most frequent value.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from math import log2

import torch

import mpcompile
from bench.machine import describe as describe_machine
from bench.numerics.curves import batches
from bench.root import ROOT
from mpcompile.numerics.calibration import measure_ranges
from mpcompile.numerics.gradient_exponents import gradients_in_fp16, joined, losses
from mpcompile.pipeline import describe
from mpcompile.plan.given import decide
from mpcompile.program.capture import capture
from mpcompile.program.unfit_constants import unfit_constants
from mpcompile.program.workload import Workload, load
from mpcompile.step.loss_scale import recommended_scale

MODELS = ("gpt", "bert", "lstm", "resnet", "dcgan", "unet", "tacotron")
RULE = mpcompile.LossScale(initial=2.0**24, interval=10)


@dataclass(frozen=True, slots=True)
class Recommended:
    """A recommended scale, and the share of all gradients lost without and with it."""

    scale: float
    lost: float
    lost_scaled: float


def recommend(workload: Workload) -> Recommended:
    """Measure eight batches at the current weights."""
    forward, policy = capture(workload), mpcompile.Policy()
    unfit = unfit_constants(forward.module, forward.constants(), policy.precision)
    plan = decide(describe(forward, policy, unfit), policy.precision)
    held = joined(gradients_in_fp16(forward, plan, measure_ranges(workload, forward, 8)))
    scale = recommended_scale(held.largest_finite)
    assert scale is not None
    return Recommended(scale, losses(held, 1.0).lost, losses(held, scale).lost)


def row(model: str, steps: int) -> str:
    """Recommend, train, recommend again; return a line of the table."""
    os.environ.update(SIZE="small", DEVICE="cpu", SEED="0")
    workload = load(str(ROOT / "models" / f"{model}.py"))
    assert workload.loss is not None
    assert workload.optimizer is not None
    before = recommend(workload)
    step = mpcompile.compile(
        workload.model,
        workload.loss,
        workload.optimizer,
        workload.batch,
        loss_scale=RULE,
        backend="interpreter",
    )
    torch.manual_seed(0)
    data = batches(workload)
    scales = []
    for _ in range(steps):
        step(*next(data))
        scales.append(step.loss_scale)
    after = recommend(workload)
    late = scales[steps // 2 :]
    usual = Counter(late).most_common(1)[0][0]
    cells = (
        model,
        _power(before.scale),
        _power(after.scale),
        f"{_power(min(late))} to {_power(max(late))}",
        _power(usual),
        f"{step.skipped}",
        f"{before.lost:.2%}",
        f"{before.lost_scaled:.2%}",
    )
    return f"| {' | '.join(cells)} |"


def _power(scale: float) -> str:
    return f"2^{log2(scale):g}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=MODELS[:4], choices=MODELS)
    options = parser.parse_args()
    print(
        "| model | recommended at the start | after training | dynamic, second half | most often "
        "| skipped steps | lost without a scale | with the recommended |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for model in options.models:
        print(row(model, options.steps), flush=True)
    machine = describe_machine("cpu")
    print(
        f"\n{options.steps} steps; {machine['date']}: {machine['device']}, {machine['cores']} "
        f"cores, torch {machine['torch']}, Python {machine['python']}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
