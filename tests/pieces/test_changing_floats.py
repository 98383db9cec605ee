"""A Python float that changes between the calls of a piece is an input of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from torch import Tensor, nn

from mpcompile import FULL_PRECISION, Policy


class Levels(nn.Module):
    """One layer at several levels, with a scale for each, as in a pyramid of features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.scales = [0.5, 0.25, 0.125, 0.0625]

    def at(self, x: Tensor, scale: float) -> Tensor:
        result: Tensor = self.layer(x) * scale + (1.0 - scale)
        return result

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for scale in self.scales:
            if x.sum().item() > 1e4:
                scale *= 2
            parts.append(self.at(x, scale).square().mean())
        return torch.stack(parts).sum()


def loss(model: nn.Module, x: Tensor) -> Tensor:
    value: Tensor = model(x)
    return value


@pytest.mark.parametrize(
    ("policy", "backend"),
    [(FULL_PRECISION, "interpreter"), (Policy(), "interpreter"), (Policy(), "inductor")],
)
def test_it_is_one_piece_for_all_its_values(
    policy: Policy, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pair = SideBySide(Levels(), loss, batches(1, (6, 8))[0], policy=policy, backend=backend)
    for mine, theirs in pair.train(batches(3, (6, 8), seed=1)):
        assert mine == (theirs if policy is FULL_PRECISION else pytest.approx(theirs, rel=5e-3))
    assert len(pair.step.pieces) <= 2  # Dynamo takes a number for a constant once
    if policy is not FULL_PRECISION:
        assert all(piece.casts for piece in pair.step.pieces)
    assert not [each for each in caplog.records if "compiler" in each.getMessage()]
