"""All processes start the same step: the same program, weights and optimizer."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import distributed

from mpcompile.errors import BadInput
from mpcompile.precision import Precision
from mpcompile.step.graph import StepGraph
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.processes import DataParallel, all_say, first_says, meeting_place
from mpcompile.step.slices import is_absent


def check_same_step(
    step: StepGraph, scale: LossScale, optimizer: torch.optim.Optimizer, parallel: DataParallel
) -> None:
    """Refuse to go on if another process has compiled another step.

    The graphs and the optimizer's options must be the same; constants in the model's code and the
    shapes of later batches may differ.

    Raises:
        BadInput: the steps differ (raised on every process), or the all-reduce is in FP16 without a
            loss scale.
    """
    if parallel.reduce is Precision.FP16 and not scale.active:
        raise BadInput(
            "without a loss scale an all-reduce of gradients in float16 can underflow or overflow",
            fix="choose reduce='bfloat16', or give a loss_scale",
        )
    told = f"{step}\n{scale}\n{_options(optimizer)}"
    every = all_say(hashlib.sha256(told.encode()).hexdigest(), parallel)
    others = [rank for rank, one in enumerate(every) if one != every[0]]
    if others:
        raise BadInput(
            f"process {others[0]} has compiled another step than process 0",
            fix="give all processes the same model, optimizer, options and example shapes",
        )


def spread(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, parallel: DataParallel
) -> None:
    """Copy the first process's parameters, buffers and optimizer state to every process."""
    values = [*model.parameters(), *model.buffers()]
    for parameter, wanted in zip(
        _parameters(optimizer), first_says(_layout(optimizer), parallel), strict=True
    ):
        if wanted or parameter in optimizer.state:
            entries = {
                key: optimizer.state[parameter].get(key, _like(kind, parameter))
                for key, kind in wanted.items()
            }
            optimizer.state[parameter] = entries
            values += [v for _, v in sorted(entries.items()) if isinstance(v, torch.Tensor)]
    for value in values:
        if not is_absent(value):
            moved = value.detach().to(meeting_place(value.device, parallel)).contiguous()
            distributed.broadcast(moved, group=parallel.group, group_src=0)
            with torch.no_grad():
                value.detach().copy_(moved)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the optimizer's options that a step can read."""
    kinds = (bool, int, float, str, tuple, torch.Tensor)
    return [
        {name: value for name, value in group.items() if isinstance(value, kinds)}
        for group in optimizer.param_groups
    ]


def _layout(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return each parameter's state; per tensor its shape, dtype and whether devices agree."""
    return [
        {
            key: (tuple(value.shape), value.dtype, value.device == parameter.device)
            if isinstance(value, torch.Tensor)
            else value
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        for parameter in _parameters(optimizer)
    ]


def _like(kind: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(kind, tuple):
        return kind
    shape, dtype, beside = kind
    return torch.empty(shape, dtype=dtype, device=parameter.device if beside else "cpu")
