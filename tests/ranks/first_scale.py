"""The first loss scale is the smallest that a process measures; a search ends on all at once."""

from __future__ import annotations

from typing import Any

import torch
from joint_net import batch, loss, made, mine, processes
from torch import Tensor, distributed, nn

import mpcompile
from mpcompile.step.processes import all_say


def weighted(model: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return loss(model, x, y) * weight


with processes():
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    for verify in (True, False):
        weight = torch.tensor(1e6 if rank == ranks - 1 else 1.0)
        given = (*mine(batch(0)), weight)
        model, optimizer = made()
        parallel = mpcompile.data_parallel()
        options: dict[str, Any] = {"parallel": parallel, "verify": verify}
        step = mpcompile.compile(model, weighted, optimizer, given, **options)
        assert step.loss_scale < 1.0 if verify else step.loss_scale == 2.0**16
        assert len(set(all_say(step.loss_scale, parallel))) == 1
        step(*given)
        assert (step.taken, step.skipped) == (1, 0)
        assert step.loss_scale < 1.0
        assert len(set(all_say(step.loss_scale, parallel))) == 1
        weights = [value.detach().clone() for value in model.parameters()]
        everyones = all_say(weights, parallel)
        for others in everyones:
            assert all(map(torch.equal, weights, others))
