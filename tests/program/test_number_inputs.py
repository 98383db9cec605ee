"""A capture in which Python numbers of the program are inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mpcompile.program.capture import InputKind, capture
from mpcompile.program.numbers.formulas import Formula, evaluate
from mpcompile.program.numbers.inputs import NumberPlace, NumberRefused
from mpcompile.program.workload import Workload

WEIGHTS = {"kl": 0.25, "all": 2}


def captured(loss: Any) -> Any:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    workload = Workload(model, (torch.randn(3, 4),), loss, optimizer)
    places = [NumberPlace(name, WEIGHTS, name) for name in WEIGHTS]
    try:
        return capture(workload, numbers=places)
    finally:
        assert WEIGHTS == {"kl": 0.25, "all": 2}
        assert type(WEIGHTS["kl"]) is float


def test_each_value_that_meets_a_tensor_is_an_input() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        made = (1 - WEIGHTS["kl"]) * model(x) + WEIGHTS["kl"]
        result: torch.Tensor = made.mean() * WEIGHTS["all"] / (1 - WEIGHTS["kl"])
        return result

    forward = captured(loss)
    numbers = [item for item in forward.inputs if item.kind is InputKind.NUMBER]
    assert [item.name for item in numbers] == ["number.0", "number.1", "number.2"]
    assert [item.tensor.item() for item in numbers] == [0.75, 0.25, 2.0]
    assert all(item.tensor.dtype is torch.float64 for item in numbers)
    values = {
        node.name: node.meta["val"] for node in forward.module.graph.nodes if node.op != "output"
    }
    assert values["mul"].dtype is values["mul_1"].dtype is values["div"].dtype is torch.float32
    forward.numbers.hand_over({"kl": 0.5, "all": 3})
    assert [item.tensor.item() for item in numbers] == [0.5, 0.5, 3.0]


def test_arithmetic_is_pythons_own() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        factor = abs(-WEIGHTS["all"] // 3) % 7 + 2 ** WEIGHTS["kl"] - WEIGHTS["all"] ** 2 / 3
        result: torch.Tensor = model(x).mean() * factor
        return result

    (formula,) = captured(loss).numbers.formulas
    assert isinstance(formula, Formula)
    for kl, every in ((0.25, 2), (0.1, 17), (-3.5, -5)):
        expected = abs(-every // 3) % 7 + 2**kl - every**2 / 3
        assert evaluate(formula, {"kl": kl, "all": every}) == expected


def test_comparisons_are_guards() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(x).mean() * min(WEIGHTS["kl"], 0.5)
        return result if WEIGHTS["all"] else 2 * result

    numbers = captured(loss).numbers
    assert numbers.admits({"kl": 0.1, "all": -1})
    assert not numbers.admits({"kl": 0.7, "all": -1})
    assert not numbers.admits({"kl": 0.1, "all": 0})


def test_a_refusal_names_the_numbers() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(model(x), WEIGHTS["all"] * 0.1).mean() * WEIGHTS["kl"]

    with pytest.raises(NumberRefused) as refused:
        captured(loss)
    assert refused.value.names == {"all"}
