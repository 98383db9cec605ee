"""Time one training step of one model in one variant, in this process alone.

``python -m bench.speed.variant ours --model gpt --size small --device cuda``

Prints one JSON object: the results of `mpcompile.speed.timing.measure`, and with ``--counts`` those
of `bench/speed/counts.py` and the loss after 100 steps. `bench/speed/step.py` runs the variants in
turn and compares them.

The batch is the same in every step and is on the device before the first.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from statistics import median
from typing import Any

from bench.root import ROOT
from bench.speed import counts
from mpcompile.program.workload import Workload, module_at
from mpcompile.speed.peers import VARIANTS, stepper
from mpcompile.speed.timing import Stepper, measure

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("SMALL", {"context": 16, "layers": 2, "heads": 2, "width": 32, "batch": 4}),
    "lstm": (
        "SMALL",
        {"vocabulary": 512, "embedding": 32, "state": 64, "projection": 32, "batch": 8},
    ),
    # A reduced version of the full size, which needs no data set.
    "resnet": (
        "FULL",
        {"image": (3, 32, 32), "classes": 10, "width": 8, "blocks": (1, 1, 1, 1), "batch": 8},
    ),
    "bert": (
        "SMALL",
        {"vocabulary": 512, "length": 16, "layers": 2, "heads": 2, "width": 32, "batch": 4},
    ),
    "dcgan": ("SMALL", {"noise": 16, "width": 8, "doublings": 2, "batch": 4}),
    "unet": (
        "FULL",
        {"image": (3, 16, 16), "classes": 5, "width": 8, "depth": 2, "batch": 4},
    ),
    "tacotron": (
        "SMALL",
        {"width": 16, "state": 16, "attention": 16, "prenet": 16, "letters": 6, "frames": 4},
    ),
}
"""Per model, the configuration from which the tiny size is made, and the changes."""

SIZES = ("tiny", "small", "full", "billion")
"""The last size exists for gpt only."""

STEPS_TO_LOSS = 100
"""Steps after which the loss is read with ``--counts``."""


def load(model: str, size: str, device: str) -> Workload:
    """Build a model of ``models/`` in a size.

    Raises:
        ValueError: the model has no such size.
    """
    os.environ["DEVICE"] = device
    module = module_at(ROOT / "models" / f"{model}.py")
    if size == "tiny":
        base, cut = TINY[model]
        config = replace(getattr(module, base), **cut)
    elif not hasattr(module, size.upper()):
        raise ValueError(f"models/{model}.py has no size {size}")
    else:
        config = getattr(module, size.upper())
    workload: Workload = module.workload(config=config, seed=0)
    return workload


def train_on(made: Stepper, done: int, step_ms: float, seconds: float) -> dict[str, Any]:
    """Train to `STEPS_TO_LOSS` steps and return the loss; nothing if that takes too long.

    Args:
        made: a step that has run `done` times.
        done: see `made`.
        step_ms: milliseconds of a step.
        seconds: the limit for the whole.
    """
    left = STEPS_TO_LOSS - done
    if left <= 0 or left * step_ms > 1000 * seconds:
        return {"loss_100": None}
    for _ in range(left - 1):
        made.step()
    return {"loss_100": float(made.step())}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build, warm up, time, count."""
    variant, device = VARIANTS[options.variant], options.device
    workload = load(options.model, options.size, device)
    batch = int(workload.batch[0].shape[0])
    casts = counts.CompiledCasts() if options.counts and variant.compiled else None
    if casts is not None:
        casts.watch()
    made, found = measure(
        lambda: stepper(workload, variant, device), device, options.warmup, options.steps
    )
    if not options.counts:
        return {"batch": batch, **found}
    done = 1 + options.warmup + options.steps + (device == "cuda")  # one to count waits
    found |= train_on(made, done, median(found["times_ms"]), options.loss_seconds)
    found["casts"] = (casts or counts.eager_casts(made.step)).document()
    found["generated_kernels"] = counts.generated_kernels() if variant.compiled else None
    found |= counts.launched(made.step) if device == "cuda" else {}
    found["flops"] = counts.model_flops(workload)
    found["bound_s"] = made.bound()
    return {"batch": batch, **found}


def main() -> None:
    """Measure one variant and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--model", required=True, choices=TINY)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    parser.add_argument("--counts", action="store_true", help="count casts and kernels too")
    parser.add_argument("--loss-seconds", type=float, default=10.0, help="for going on to step 100")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
