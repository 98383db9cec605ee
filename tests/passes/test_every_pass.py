"""What holds for every pass: an honest count, nothing to do the second time, a valid graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from programs.graphs import WORKLOADS, step_of
from torch import fx

from mpcompile.passes.invariants import check_after
from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.passes.order import GRADIENT, training_passes
from mpcompile.passes.runner import pass_name, run_passes
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.precision import Precision
from mpcompile.program.graph_text import graph_text
from mpcompile.step.graph import StepGraph
from mpcompile.step.loss_scale import LossScale

POLICIES = {
    "fp16": (Policy(), LossScale()),
    "fp16 static": (Policy(), LossScale.static(128.0)),
    "bf16": (Policy(precision=Precision.BF16), LossScale.none()),
    "fp32": (FULL_PRECISION, LossScale.none()),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_each_training_pass_counts_honestly_and_is_idempotent(workload: str, policy: str) -> None:
    rule, scale = POLICIES[policy]
    step = step_of(WORKLOADS[workload](), rule)
    check_after(step)
    finished = []
    for rewrite in training_passes(scale):
        before, slots = str(step), set(step.slots)
        changes = rewrite(step)
        name = pass_name(rewrite)
        assert (changes == 0) == (str(step) == before and set(step.slots) == slots), name
        finished.append(name)
        check_after(step, finished)
        after = str(step)
        assert rewrite(step) == 0, name
        assert str(step) == after, name


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("rewrite", [*GRADIENT, emulate_half, numbers_to_tensors])
def test_each_graph_pass_counts_honestly_and_is_idempotent(
    workload: str, rewrite: Callable[[fx.GraphModule], int]
) -> None:
    for module in graphs(step_of(WORKLOADS[workload]())):
        before = graph_text(module.graph)
        changes = rewrite(module)
        assert (changes == 0) == (graph_text(module.graph) == before)
        module.graph.lint()
        after = graph_text(module.graph)
        assert rewrite(module) == 0
        assert graph_text(module.graph) == after


def graphs(step: StepGraph) -> tuple[fx.GraphModule, fx.GraphModule]:
    return step.gradient, step.update


def test_a_failing_pass_says_which_one_it_was() -> None:
    def broken(_: Any) -> int:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose") as caught:
        run_passes([], (len, broken), lambda _: None)
    assert caught.value.__notes__ == ["while broken rewrote the graph; finished before: ['len']"]
