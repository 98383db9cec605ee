"""Numbers of a recorded program: IEEE arithmetic, formulas, both sides of a branch."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcompile.program.numbers.formulas import Formula, Guard, evaluate
from mpcompile.step.record import record
from mpcompile.step.recorded_number import Numbers, power, truediv
from mpcompile.torch_private.tensors import fake_like, fake_mode
from mpcompile.torch_private.tracing import DataDependent, functionalized

NUMBERS = st.floats() | st.sampled_from([0.0, -0.0, 1.0, -2.0, math.inf, math.nan])


def same(left: float, right: torch.Tensor) -> bool:
    wanted = float(right)
    return math.isnan(wanted) if math.isnan(left) else left == wanted


@given(NUMBERS, NUMBERS)
def test_a_quotient_is_that_of_ieee(left: float, right: float) -> None:
    a, b = (torch.tensor(value, dtype=torch.float64) for value in (left, right))
    found = truediv(left, right)
    assert same(found, a / b)
    if not math.isnan(found):
        assert math.copysign(1.0, found) == float(torch.sign(torch.copysign(torch.ones(()), a / b)))


@pytest.mark.parametrize("base", [-8.0, -1.5, 0.0, 0.3, 1.0, -1e200, 1e200])
@pytest.mark.parametrize("exponent", [-3.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0])
def test_a_power_is_that_of_ieee(base: float, exponent: float) -> None:
    expected = torch.tensor(base, dtype=torch.float64) ** exponent
    found = power(base, exponent)
    assert math.isnan(found) == bool(expected.isnan())
    assert math.isnan(found) or found == pytest.approx(float(expected), rel=1e-15)


def test_a_power_of_minus_zero_keeps_its_sign() -> None:
    assert (power(-0.0, -3.0), power(-0.0, -2.0)) == (-math.inf, math.inf)


def test_a_formula_is_evaluated_with_other_options() -> None:
    condition = Formula(operator.gt, (Formula(operator.mul, ("lr", 2.0)), "eps"))
    guard = Guard(condition, answer=True)
    assert condition.options() == {"lr", "eps"}
    assert evaluate(condition, {"lr": 1.0, "eps": 1.5}) is True
    assert guard.holds({"lr": 1.0, "eps": 1.5})
    assert not guard.holds({"lr": 0.5, "eps": 1.5})


def recorded(function: Any, numbers: Numbers) -> torch.fx.GraphModule:
    mode = fake_mode()
    inputs = [fake_like(mode, (), torch.float32, torch.device("cpu")) for _ in range(2)]
    return record(functionalized(function), inputs, mode, numbers)


def branching(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.item() > 1:
        return y * 2 if (x > y).item() else y * 3
    return y + 1 if y.item() <= 0 else y - 1


@pytest.mark.parametrize("x", [-1.0, 1.0, 2.0])
@pytest.mark.parametrize("y", [-1.0, 0.0, 1.5, 5.0])
def test_each_way_through_nested_branches_is_selected(x: float, y: float) -> None:
    numbers = Numbers()

    def both(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (numbers.explore(lambda: {"r": branching(a, b)})["r"],)

    module = recorded(both, numbers)
    a, b = torch.tensor(x), torch.tensor(y)
    assert torch.equal(module(a, b)[0], branching(a, b))


def test_without_exploring_a_branch_is_refused() -> None:
    with pytest.raises(DataDependent):
        recorded(lambda a, b: (branching(a, b),), Numbers())


def test_too_many_branches_are_refused() -> None:
    numbers = Numbers()

    def many(a: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def run() -> dict[str, torch.Tensor]:
            return {"r": a + len([place for place in range(9) if a.item() > place])}

        return (numbers.explore(run)["r"],)

    with pytest.raises(DataDependent):
        recorded(many, numbers)
