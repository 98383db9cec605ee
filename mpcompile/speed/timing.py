"""How long a step takes, what it allocates, and how often it makes the host wait.

On CUDA, steps are timed by events on the stream, with no synchronisation between them; on the CPU
by the wall clock.
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
        step: runs one step and returns its loss, unread.
        state: returns loss scale and skipped steps (None: unknown), which reads the device.
        note: what is particular about it.
        bound: returns the seconds below which no such step runs here; None: unknown.
    """

    step: Step
    state: Callable[[], tuple[float, int | None]]
    note: str
    bound: Callable[[], float | None] = lambda: None


def measure(
    make: Callable[[], Stepper], device: str, warmup: int, steps: int
) -> tuple[Stepper, dict[str, Any]]:
    """Make a step, warm it up, time it; return it with what was measured.

    The document holds ``setup_s`` (seconds from the built model to the end of the first step),
    ``times_ms`` of each timed step, ``memory`` in bytes at the peak after the first one (on the
    CPU: the largest resident set of the process, compilation included), losses, loss scale, and on
    CUDA ``syncs``, the host's waits in a step, and ``reserved``, the peak of what the process
    holds. A replayed CUDA graph allocates nothing: its peak is that of the plain steps in the
    warm-up and of its capture.

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
        torch.cuda.empty_cache()  # of what compilation tried out
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

    ``getrusage`` would count the parent's, from which this process was forked.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
