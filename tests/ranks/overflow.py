"""What is not finite on one process skips the step on all, and leaves no trace on any."""

from __future__ import annotations

from typing import Any

import torch
from joint_net import batch, compiled, everywhere, made, mine, processes, state
from torch import distributed

from mpcompile import LossScale

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"accumulate": 2}),
    ({"shard": True}, {}),
    ({"shard": True}, {"max_grad_norm": 0.1}),
    ({"reduce": "float16"}, {}),
]

with processes():
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    for parallel, options in CASES:
        model, optimizer = made(batch_norm=True)
        step = compiled(model, optimizer, parallel, loss_scale=LossScale(256.0), **options)
        calls = options.get("accumulate", 1)
        for _ in range(calls):
            step(*mine(batch(0)))
        assert (step.taken, step.skipped) == (1, 0)
        before = state(step, model, optimizer)
        for culprit, wrong in ((0, float("inf")), (ranks - 1, float("nan"))):
            for call in range(calls):
                x, y = mine(batch(culprit + call))
                if rank == culprit and call == 0:
                    x[-1, -1] = wrong
                step(x, y)
            assert not bool(step.applied)
        assert (step.taken, step.skipped, step.loss_scale) == (1, 2, 64.0)
        after = state(step, model, optimizer)
        assert all(torch.equal(before[name], after[name]) for name in before), parallel
        for call in range(calls):
            step(*mine(batch(5 + call)))
        assert (step.taken, bool(step.applied)) == (2, True)
        found = state(step, model, optimizer)
        everywhere(found)
        assert all(value.isfinite().all() for value in found.values())
        assert not torch.equal(found["norm.running_mean"], before["norm.running_mean"])
