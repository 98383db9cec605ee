"""Lint finds angles, differences, choices and matrices that 16 bits round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs.lint_programs import between, findings, line_of
from torch import Tensor, nn

from mpcompile import Level, Policy
from mpcompile.lint.finding import Severity

ERROR, WARNING, NOTE = Severity


class Features(nn.Module):
    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.last = features, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)  # the features
        result: Tensor = self.last(features)
        return result


def angle(x: Tensor) -> Tensor:
    return (x * 3000).sin()


def difference(x: Tensor) -> Tensor:
    return (x * 2 - x.roll(1, 0) * 2).abs()


def choice(x: Tensor) -> Tensor:
    return (x * 8).floor() / 8


RULES = {
    "MP203": (angle, "angle"),
    "MP204": (difference, "a number of a difference"),
    "MP205": (choice, "the argument of a choice"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_number_that_an_override_rounds_is_found(rule: str) -> None:
    features, says = RULES[rule]
    policy = Policy(half=("op:mul",))
    found = findings(Features(features), torch.randn(16, 8), policy=policy, rule=rule)
    assert {(item.rule, item.severity, item.op) for item in found} == {(rule, WARNING, "mul")}
    assert says in found[0].message
    assert "as an override" in found[0].message
    assert findings(Features(features), torch.randn(16, 8)) == []


def test_a_finding_has_the_line() -> None:
    policy = Policy(half=("op:mul",))
    (found,) = findings(Features(angle), torch.randn(16, 8), policy=policy, rule="MP203")
    assert found.where.line == line_of(__file__, "the features")
    assert found.message.endswith("sin reads it: 16 bits hold no fraction of a large angle")


def test_a_layer_that_the_plan_keeps_for_a_sine_is_a_note_with_its_cost() -> None:
    (found,) = between(lambda h, _: (30 * h).sin())
    assert (found.rule, found.severity, found.op) == ("MP203", NOTE, "linear")
    assert "stays in FP32, without Tensor Cores" in found.message
    assert f"--half 'node:{found.node}'" in found.fix


@pytest.mark.filterwarnings("ignore::mpcompile.plan.sensitivity.NarrowedArgument")
def test_a_level_that_narrows_it_is_a_warning() -> None:
    found = between(lambda h, _: (30 * h).sin(), policy=Policy(Level.TENSOR_CORES_ONLY))
    assert [(item.rule, item.severity, item.op) for item in found] == [("MP203", WARNING, "linear")]


def test_the_matrix_of_a_solver_is_found() -> None:
    def solved(h: Tensor, _: Tensor | None) -> Tensor:
        result: Tensor = torch.linalg.solve(h.T @ h + torch.eye(8), h.T).T
        return result

    noted = between(solved, rule="MP206")
    assert [(item.severity, item.op) for item in noted] == [(NOTE, "linear"), (NOTE, "matmul")]
    found = between(solved, policy=Policy(half=("op:matmul", "op:add")), rule="MP206")
    assert {(item.severity, item.op) for item in found if item.severity is WARNING} == {
        (WARNING, "matmul"),
        (WARNING, "add"),
    }


class Lookup(nn.Module):
    """Ids that come as floating-point numbers."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(rows, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.abs() * 1.0  # the ids
        result: Tensor = self.last(self.table(ids.to(torch.int64)))
        return result


def test_an_id_in_too_few_digits_is_found() -> None:
    policy = Policy(half=("op:mul",))
    (found,) = findings(Lookup(5000), torch.randn(16), policy=policy)
    assert (found.rule, found.severity, found.op) == ("MP207", WARNING, "mul")
    assert found.message.startswith("mul stores integers up to 4,999 in FP16 as an override")
    assert found.where.line == line_of(__file__, "the ids")
    assert findings(Lookup(5000), torch.randn(16)) == []


def test_ids_that_16_bits_hold_are_no_finding() -> None:
    policy = Policy(half=("op:mul",))
    found = findings(Lookup(2000), torch.randn(16), policy=policy)
    assert {item.rule for item in found} == {"MP205"}  # the numbers may still fall between ids


def test_positions_that_are_compared_are_found() -> None:
    def compared(x: Tensor) -> Tensor:
        positions = torch.arange(3000).to(x) + 1.0
        return x * (positions > 2049.0).to(x)[:8]

    policy = Policy(half=("op:add",))
    found = findings(Features(compared), torch.randn(16, 8), policy=policy, rule="MP207")
    assert [(item.op, "up to 3,000" in item.message) for item in found] == [("add", True)]
