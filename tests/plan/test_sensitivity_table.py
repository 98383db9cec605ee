"""The sensitivities of the op table, measured: each op of one tensor on rounded numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import Sensitivity

ROUNDING = 2.0**-11
NUMBERS = torch.cat([sign * torch.logspace(-3, 4, 4001, dtype=torch.float64) for sign in (1, -1)])
FACTOR = 15.0
SMALL = 0.1
"""Results below it count as this large: the tail of an activation may lose its last digits."""
NEEDS_ANOTHER_SIGN = frozenset(("angle", "sgn", "sign"))
CHOOSES = frozenset(("msort",))


FAMILIES = ("range grows", "special function", "log_sigmoid", "pointwise", "activation", "choice")


def results() -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Yield each op that maps numbers to as many numbers, with its results on exact and rounded."""
    for name in sorted(name for name, rule in TORCH_RULES.items() if rule.name in FAMILIES):
        op: Any = getattr(torch.ops.aten, name, None)
        try:
            exact, rounded = op(NUMBERS.clone()), op(NUMBERS * (1 + ROUNDING))
        except (RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError):
            continue
        same = isinstance(exact, torch.Tensor) and exact.shape == NUMBERS.shape
        if same and exact.is_floating_point():
            yield name, (exact, rounded)


POINTWISE = dict(results())


def growth(exact: torch.Tensor, rounded: torch.Tensor, small: float) -> float:
    """Return the largest relative error of the results, as a multiple of that of the inputs."""
    counts = exact.isfinite() & rounded.isfinite() & (exact.abs().clamp(min=small) > 0)
    error = (rounded - exact).abs() / exact.abs().clamp(min=small)
    return float(error[counts].max()) / ROUNDING


def test_most_ops_of_one_tensor_are_measured() -> None:
    assert len(POINTWISE) > 80


@pytest.mark.parametrize("name", POINTWISE)
def test_an_op_is_as_sensitive_as_its_row_says(name: str) -> None:
    sensitivity = TORCH_RULES[name].sensitivity
    if sensitivity is Sensitivity.HARMLESS:
        assert growth(*POINTWISE[name], SMALL) < FACTOR
    elif name not in NEEDS_ANOTHER_SIGN | CHOOSES:
        assert growth(*POINTWISE[name], 1e-30) > FACTOR
