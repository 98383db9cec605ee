"""The time that the proof on the first batch takes, which `mpcompile bench` prints."""

from __future__ import annotations

import time

import torch

from mpcompile.program.capture import capture
from mpcompile.program.proof.effects import Effects
from mpcompile.program.proof.verify import verify
from mpcompile.program.workload import Workload

TIMES = 3


def seconds_of_proof(workload: Workload) -> float:
    """Return the least seconds of `verify` on a workload's batch, without the capture.

    Args:
        workload: with a loss and an optimizer; nothing of it is changed.
    """
    forward = capture(workload)
    on_cuda = next(iter(workload.model.parameters())).device.type == "cuda"
    found = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        verify(workload, forward, Effects(workload))
        if on_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found)
