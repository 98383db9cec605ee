"""Time one training step of one model in one variant, in this process alone.

``PYTHONPATH=. python bench/variant.py ours --model gpt --size small --device cuda``

Prints one JSON object: setup seconds (all from the built model to the end of the first step), the
milliseconds of every timed step, peak memory while they run (on the CPU: the largest resident set
of the process until then, compilation included), losses, loss scale, and on CUDA how often a step
makes the host wait. `bench/step.py` runs the variants in turn and compares them.

The batch is the same in every step and lies on the device before the first. On CUDA, steps are
timed by events on the stream, with no synchronisation between them; on the CPU by the wall clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import mpcompile
from mpcompile.workload import Workload

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("SMALL", {"context": 16, "layers": 2, "heads": 2, "width": 32, "batch": 4}),
    "lstm": (
        "SMALL",
        {"vocabulary": 512, "embedding": 32, "state": 64, "projection": 32, "batch": 8},
    ),
    # Cut from the full size, which needs no data set.
    "resnet": (
        "FULL",
        {"image": (3, 32, 32), "classes": 10, "width": 8, "blocks": (1, 1, 1, 1), "batch": 8},
    ),
}
"""Per model the configuration that the tiny size is cut from, and what is cut."""


@dataclass(frozen=True)
class Variant:
    """A way to run a training step.

    Attributes:
        peer: whether it is something to compare with, or ours.
        cast: whether autocast (a peer) or mpcompile (ours) uses 16 bits.
        compiled: whether inductor makes the code.
        fused: whether a peer's optimizer is the fused one where there is one.
        precision: ours: the 16-bit format; None: that of the device.
        mode: the mode of `torch.compile`.
        tf32: whether FP32 matmuls on CUDA may use TF32; convolutions and RNNs always may, as is
            PyTorch's default.
        information: never compared, and run once only.
    """

    peer: bool
    cast: bool = True
    compiled: bool = True
    fused: bool = False
    precision: str | None = None
    mode: str = "default"
    tf32: bool = False
    information: bool = False


VARIANTS: dict[str, Variant] = {
    "ours": Variant(peer=False),
    "compiled": Variant(peer=True, fused=True),
    "compiled-cudagraphs": Variant(peer=True, fused=True, mode="reduce-overhead"),
    "autocast": Variant(peer=True, compiled=False),
    "fp32": Variant(peer=True, cast=False, compiled=False),
    "tf32": Variant(peer=True, cast=False, compiled=False, tf32=True),
    "ours-interpreter": Variant(peer=False, compiled=False, precision="float16", information=True),
}


@dataclass
class Stepper:
    """A training step ready to run.

    Attributes:
        step: runs one step and returns its loss, unread.
        state: returns loss scale and skipped steps (None: unknown), which reads the device.
        note: what is particular about it.
    """

    step: Callable[[], torch.Tensor]
    state: Callable[[], tuple[float, int | None]]
    note: str


def load(model: str, size: str, device: str) -> Workload:
    """Build a model of ``models/`` in the tiny, small or full size."""
    os.environ["DEVICE"] = device
    module = importlib.import_module(f"models.{model}")
    if size == "tiny":
        base, cut = TINY[model]
        config = replace(getattr(module, base), **cut)
    else:
        config = getattr(module, size.upper())
    workload: Workload = module.workload(config=config, seed=0)
    return workload


def ours(workload: Workload, variant: Variant, dtype: torch.dtype) -> Stepper:
    """Compile the step with mpcompile."""
    assert workload.loss is not None
    assert workload.optimizer is not None
    name = variant.precision or str(dtype).removeprefix("torch.")
    precision = {"float16": mpcompile.Precision.FP16, "bfloat16": mpcompile.Precision.BF16}[name]
    backend: Any = "inductor" if variant.compiled else "interpreter"
    step = mpcompile.compile(
        workload.model,
        workload.loss,
        workload.optimizer,
        workload.batch,
        policy=mpcompile.Policy(precision=precision),
        backend=backend,
    )
    batch = workload.batch
    return Stepper(
        lambda: step(*batch),
        lambda: (step.loss_scale, step.skipped),
        f"{name}, {backend}",
    )


def peer(workload: Workload, variant: Variant, dtype: torch.dtype, device: str) -> Stepper:
    """Write the step by hand: autocast, `GradScaler` where the dtype is FP16, optimizer."""
    assert workload.loss is not None
    assert workload.optimizer is not None
    model, batch, optimizer = workload.model, workload.batch, workload.optimizer
    torch.backends.cuda.matmul.allow_tf32 = variant.tf32
    notes = [str(dtype).removeprefix("torch.") if variant.cast else "float32"]
    if variant.fused:
        optimizer, fused = with_fused_step(optimizer, device)
        notes.append(f"{type(optimizer).__name__} {'fused' if fused else 'not fused'}")
    loss = workload.loss
    if variant.compiled:
        loss = torch.compile(loss, mode=None if variant.mode == "default" else variant.mode)
        notes.append(f"torch.compile {variant.mode}")
    scaler = torch.amp.GradScaler(device, enabled=variant.cast and dtype is torch.float16)
    notes.append("GradScaler" if scaler.is_enabled() else "no scaler")

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=variant.cast):
            value = loss(model, *batch)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return Stepper(step, lambda: (scaler.get_scale(), None), ", ".join(notes))


def with_fused_step(
    optimizer: torch.optim.Optimizer, device: str
) -> tuple[torch.optim.Optimizer, bool]:
    """Return the same optimizer with ``fused=True``, or itself where there is no such kernel."""
    make: Any = type(optimizer)
    trial = torch.nn.Parameter(torch.zeros(2, device=device))
    trial.grad = torch.zeros_like(trial)
    try:
        make([trial], lr=0.1, fused=True).step()
    except (RuntimeError, TypeError):  # no kernel for this device; no such argument
        return optimizer, False
    groups = [
        {key: value for key, value in group.items() if key not in ("fused", "foreach")}
        for group in optimizer.param_groups
    ]
    return make(groups, lr=0.1, fused=True), True  # every group brings its own lr


def time_steps(
    step: Callable[[], torch.Tensor], count: int, device: str
) -> tuple[list[float], float]:
    """Return the milliseconds of each step, and the last step's loss."""
    loss = torch.zeros(())
    if device == "cuda":
        event_class: Any = torch.cuda.Event
        events = [event_class(enable_timing=True) for _ in range(count + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            loss = step()
            event.record()
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in pairwise(events)]
        return times, float(loss)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        loss = step()
        times.append(1000 * (time.perf_counter() - begin))
    return times, float(loss)


def count_syncs(step: Callable[[], torch.Tensor]) -> int:
    """Return how often one step on CUDA makes the host wait for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return sum("called a synchronizing CUDA operation" in str(w.message) for w in caught)


def peak_rss() -> int:
    """Return the largest resident set of this process in bytes.

    ``getrusage`` would count the parent's, from which this process was forked.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Build, warm up, time."""
    variant, device = VARIANTS[options.variant], options.device
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    workload = load(options.model, options.size, device)
    cuda = device == "cuda"
    begin = time.perf_counter()
    made = (
        peer(workload, variant, dtype, device) if variant.peer else ours(workload, variant, dtype)
    )
    losses = [float(made.step())]
    setup = time.perf_counter() - begin
    losses += [float(made.step()) for _ in range(options.warmup)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times, last = time_steps(made.step, options.steps, device)
    memory = torch.cuda.max_memory_allocated() if cuda else peak_rss()
    scale, skipped = made.state()
    return {
        "note": made.note,
        "batch": workload.batch[0].shape[0],
        "setup_s": setup,
        "times_ms": times,
        "memory": memory,
        "losses_before_timing": losses,
        "loss": last,
        "loss_scale": scale,
        "skipped": skipped,
        "syncs": count_syncs(made.step) if cuda else None,
    }


def main() -> None:
    """Measure one variant and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--model", required=True, choices=TINY)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "full"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
