"""Planted faults are named at their node and line; faults of the program are told apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets.small_models import compiled
from planted import marked
from planted.marked import FORCED, line_of
from programs.graphs import linear
from torch import nn

from mpcompile import LossScale, Policy, Workload
from mpcompile.numerics.lockstep import moment
from mpcompile.numerics.nonfinite import Cause, first_nonfinite

pytestmark = pytest.mark.filterwarnings("ignore::mpcompile.UnmatchedOverride")


def cause_in(made: Workload, policy: Policy | None = None, scale: float = 1024.0) -> Cause | None:
    step = compiled(made, "interpreter", policy, LossScale.static(scale))
    return first_nonfinite(moment(step, *made.batch))


@pytest.mark.parametrize(
    ("middle", "fault", "op", "why"),
    [
        (marked.Logits, "logits", "bmm", r"its result reaches \d\.\d+e\+05, beyond 65504"),
        (
            marked.Epsilon,
            "division",
            "div",
            "because add .*marked.py:.* rounded a nonzero number to 0",
        ),
        (marked.Sum, "sum", "add", r"its result reaches 6\.\d+e\+04, beyond 65504"),
    ],
)
def test_a_planted_fault_is_named(
    middle: Callable[[], nn.Module], fault: str, op: str, why: str
) -> None:
    found = cause_in(marked.program(middle), FORCED)
    assert found is not None
    assert (found.op, found.stage, found.where.module) == (op, "forward", "middle")
    assert (Path(found.where.file).name, found.where.line) == ("marked.py", line_of(fault))
    assert found.fits_at is None
    assert {"leave.weight", "enter.weight"} <= set(found.gradients)
    text = " ".join(found.sentences())
    assert re.search(why, text), text


def test_a_vanished_epsilon_is_named_with_its_line_and_as_the_op_to_keep_in_fp32() -> None:
    found = cause_in(marked.program(marked.Epsilon), FORCED)
    assert found is not None
    assert f"marked.py:{line_of('epsilon')}" in found.why
    assert found.keep == ("add",)
    assert found.sentences("`--full node:add` mends it.")[-1] == "`--full node:add` mends it."


@pytest.mark.parametrize("middle", [marked.Logits, marked.Epsilon, marked.Sum])
def test_the_advised_override_helps(middle: Callable[[], nn.Module]) -> None:
    found = cause_in(marked.program(middle), FORCED)
    kept: list[str] = []
    while found is not None:
        names = [f"node:{name}" for name in found.keep]
        assert not set(names) & set(kept), "the advice was followed, but did not help"
        kept += names
        policy = Policy(full=tuple(kept), half=FORCED.half)
        found = cause_in(marked.program(middle), policy)
    # What is too large stays so until the division: what reads it has to be named too.
    expected = {
        marked.Logits: ["matmul", "div"],
        marked.Epsilon: ["add", "div"],
        marked.Sum: [*(f"add_{k}" for k in range(21, 30)), "div"],
    }
    assert kept == [f"node:{name}" for name in expected[middle]]  # type: ignore[index]


def test_sound_programs_have_no_cause() -> None:
    assert cause_in(marked.program(nn.Identity)) is None
    assert cause_in(marked.program(marked.Epsilon)) is None  # the planner protects it


@pytest.mark.parametrize("log2_scale", range(14, 25, 2))
def test_a_loss_scale_that_is_too_large_is_told_from_one_that_is_not(log2_scale: int) -> None:
    made = linear()
    found = cause_in(made, scale=2.0**log2_scale)
    step = compiled(linear(), "interpreter", None, LossScale.static(2.0**log2_scale))
    overflows = not all(bool(g.isfinite().all()) for g in step.gradients(*made.batch).values())
    assert (found is not None) == overflows
    if found is not None:
        assert found.stage == "backward"
        assert found.fits_at is not None
        assert found.fits_at < 2.0**log2_scale


def test_the_named_scale_is_small_enough_for_its_node_and_twice_the_scale_is_not() -> None:
    found = cause_in(linear(), scale=2.0**24)
    assert found is not None
    assert found.fits_at is not None
    for factor, same in ((1.0, False), (2.0, True)):
        again = cause_in(linear(), scale=found.fits_at * factor)
        assert (again is not None and again.node == found.node) == same


class Root(nn.Module):
    """The gradient of a square root at zero is infinite in every format."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (x - x).sqrt()


class Masked(nn.Module):
    """An intended mask of infinities."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch.arange(x.shape[-1]) < 3
        return torch.softmax(x.masked_fill(~kept, float("-inf")), dim=-1)


def test_numbers_not_finite_in_fp64_either_come_from_the_program() -> None:
    found = cause_in(marked.program(Root))
    assert found is not None
    assert "in FP64 either, so the program is the cause" in found.why
    assert found.stage == "backward"
    assert found.where.module == "middle"


def test_a_mask_of_infinities_is_no_cause() -> None:
    assert cause_in(marked.program(Masked)) is None


def test_a_weight_that_fp16_cannot_hold_is_named() -> None:
    made = marked.program(nn.Identity)
    with torch.no_grad():
        made.model.get_parameter("enter.weight")[0, 0] = 1e5
    found = cause_in(made)
    assert found is not None
    assert found.op == "enter.weight.working"
    assert "reaches 1e+05, beyond 65504" in found.why


def test_operands_are_those_of_the_node() -> None:
    found = cause_in(marked.program(marked.Epsilon), FORCED)
    assert found is not None
    by_name = {operand.name: operand for operand in found.reads}
    assert by_name.keys() == {"relu", "add"}
    assert by_name["relu"].zeros == by_name["add"].zeros > 0
    assert 0 < by_name["relu"].smallest < by_name["relu"].largest


def test_hostile_names_reach_no_terminal() -> None:
    made = marked.program(marked.Logits)
    made.model.add_module("evil\x1b[31m", made.model.get_submodule("middle"))
    for line in (cause_in(made) or pytest.fail("no cause")).sentences():
        assert line.isprintable()
