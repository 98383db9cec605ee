"""All processes start one and the same step: the same program, weights and optimizer state."""

from __future__ import annotations

import hashlib

import torch
from torch import distributed

from mpcompile.collectives import put_together
from mpcompile.errors import BadInput
from mpcompile.loss_scale import LossScale
from mpcompile.processes import DataParallel, meeting_place
from mpcompile.step import StepGraph


def check_same_step(step: StepGraph, scale: LossScale, parallel: DataParallel) -> None:
    """Refuse to go on if another process has compiled another step.

    The graphs must be the same; constants in the model's code and the shapes of later batches may
    differ.

    Raises:
        BadInput: they differ; on every process.
    """
    told = f"{step}\n{scale}"
    mine = torch.frombuffer(bytearray(hashlib.sha256(told.encode()).digest()), dtype=torch.uint8)
    mine = mine.to(meeting_place(mine.device, parallel))
    every = put_together(mine, parallel).cpu().view(parallel.ranks, -1)
    others = [rank for rank, one in enumerate(every) if not torch.equal(one, every[0])]
    if others:
        raise BadInput(
            f"process {others[0]} has compiled another step than process 0",
            "",
            "give all processes the same model, optimizer, loss scale and shapes of the example",
        )


def spread(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, parallel: DataParallel
) -> None:
    """Let every process hold the first one's parameters, buffers and optimizer state."""
    held = [*model.parameters(), *model.buffers()]
    states = [state for _, state in sorted(_states(optimizer).items())]
    for value in [*held, *(s for state in states for _, s in sorted(state.items()))]:
        moved = value.detach().to(meeting_place(value.device, parallel)).contiguous()
        distributed.broadcast(moved, group=parallel.group, group_src=0)
        with torch.no_grad():
            value.detach().copy_(moved)


def _states(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    """Return the tensors of an optimizer's state, per parameter by its position."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        place: {k: v for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        for place, p in enumerate(parameters)
        if p in optimizer.state
    }
