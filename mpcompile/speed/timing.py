"""Measurements of a step: its time, its memory, and how often it makes the host wait.

On CUDA, events on the stream time the steps, with no synchronisation between them; on the CPU the
wall clock does.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], torch.Tensor]


@dataclass
class Stepper:
    """A training step ready to run.

    Attributes:
        step: runs one step and returns its loss, not copied to the host.
        state: returns loss scale and skipped steps (None: unknown); it reads the device.
        note: the settings of the step in words.
        bound: returns the least seconds of the step on this device; None: unknown.
    """

    step: Step
    state: Callable[[], tuple[float, int | None]]
    note: str
    bound: Callable[[], float | None] = lambda: None


def measure(
    make: Callable[[], Stepper], device: str, warmup: int, steps: int
) -> tuple[Stepper, dict[str, Any]]:
    """Make a step, warm it up, time it; return the step and the measurements.

    The measurements are ``setup_s`` (seconds from the built model to the end of the first step),
    ``times_ms`` of each timed step, ``memory`` in bytes at the peak after the first step (on the
    CPU: the largest resident set of the process, with compilation), losses, loss scale, and on CUDA
    ``syncs``, the host's waits in a step, and ``reserved``, the largest memory that the process
    reserved. A replayed CUDA graph allocates nothing: its peak comes from the plain steps of the
    warm-up and from its capture.

    Args:
        make: makes the step, which compiles at its first call.
        device: ``"cpu"`` or ``"cuda"``.
        warmup: steps between the first and the timed ones; five suffice for a CUDA graph.
        steps: timed steps, at least 2.
    """
    cuda = device == "cuda"
    begin = time.perf_counter()
    made = make()
    losses = [float(made.step())]
    setup = time.perf_counter() - begin
    if cuda:
        torch.cuda.empty_cache()  # memory of kernels that compilation tried
        torch.cuda.reset_peak_memory_stats()
    losses += [float(made.step()) for _ in range(warmup)]
    times, last = time_steps(made.step, steps, device)
    memory = torch.cuda.max_memory_allocated() if cuda else peak_rss()
    scale, skipped = made.state()
    return made, {
        "note": made.note,
        "setup_s": setup,
        "times_ms": times,
        "memory": memory,
        "reserved": torch.cuda.max_memory_reserved() if cuda else None,
        "losses_before_timing": losses,
        "loss": last,
        "loss_scale": scale,
        "skipped": skipped,
        "syncs": count_syncs(made.step) if cuda else None,
    }


def time_steps(step: Step, count: int, device: str) -> tuple[list[float], float]:
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


def count_syncs(step: Step) -> int:
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

    ``getrusage`` would count the parent's too, because this process was forked from it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
