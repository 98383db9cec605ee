"""Optimizers with branches and first steps of their own, compiled by inductor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.eager_optimizer import batch, eager_step, pair
from programs.dense_optimizers import optimizer_of
from programs.graphs import cross_entropy

import mpcompile
from mpcompile import FULL_PRECISION


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "dampening": 0.5}),
        ("RAdam", {"weight_decay": 0.1}),
        ("ASGD", {"t0": 3.0}),
        ("Adafactor", {}),
    ],
)
def test_inductor_follows_plain_pytorch_to_fp32_rounding(
    name: str, options: dict[str, Any]
) -> None:
    left, right = pair()
    mine, theirs = (optimizer_of(m, name, options, torch.tensor(0.01)) for m in (left, right))
    step = mpcompile.compile(
        left, cross_entropy, mine, batch(0), policy=FULL_PRECISION, backend="inductor"
    )
    for seed in range(12):
        step(*batch(seed))
        eager_step(right, theirs, seed)
        if seed == 5:
            for optimizer in (mine, theirs):
                optimizer.param_groups[0]["lr"].fill_(0.02)
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
