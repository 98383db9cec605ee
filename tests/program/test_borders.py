"""Graphs inside graphs: how often they run, who shares them, what the planner sees of borders."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import cast

import pytest
import torch
from expecttest import assert_expected_inline
from programs.flows import (
    Branch,
    Flow,
    Gated,
    Recurrent,
    Repeat,
    Tensor,
    exported,
    flow_of,
    refuse_mixed_dtypes,
    run,
    scan,
)

import mpcompile
from mpcompile.plan.footprint import footprints
from mpcompile.plan.nest import BorderKind
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import Policy
from mpcompile.program.control_flow import all_graphs, nest_of
from mpcompile.program.graph_text import graph_text
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name


def test_rows_for_the_planner() -> None:
    flow = flow_of(exported(Repeat).run_decompositions({}))
    text = "\n".join(
        f"{op.id}: {op.kind}\n  {' '.join(op.reads)}\n  -> {' '.join(op.writes)}"
        for op in flow.ops
        if op.rule == "control flow"
    )
    assert_expected_inline(
        text,
        """\
while_loop/carry_1: while_loop carry
  linear while_loop_body_graph_0.relu
  -> while_loop_cond_graph_0.arg1_1 while_loop_body_graph_0.arg1_1 getitem_1
while_loop/operand_0: while_loop operand
  p_b_bias
  -> while_loop_cond_graph_0.arg2_1 while_loop_body_graph_0.arg2_1
while_loop/operand_1: while_loop operand
  p_b_weight
  -> while_loop_cond_graph_0.arg3_1 while_loop_body_graph_0.arg3_1""",
    )


class Twice(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = scan(self.cell, torch.zeros(4, 8), x)
        _, zs = scan(self.cell, h, ys)
        return cast(Tensor, self.a(zs))


def sharing() -> torch.export.ExportedProgram:
    """Two loops with one body."""
    program = copy.deepcopy(exported(Twice))
    graph = program.graph
    first, second = (node for node in graph.nodes if op_name(node) == "scan")
    second.update_arg(0, first.args[0])
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


@pytest.mark.parametrize("pinned", ["scan/carry_0", "scan_1/carry_0"])
def test_a_body_that_two_loops_share_gets_the_stricter_need(pinned: str) -> None:
    program = sharing()
    nest = nest_of(program.graph_module)
    assert len(nest.inners) == 2
    assert {i.prefix: i.rounds for i in nest.inners[1:]} == {"scan_combine_graph_0.": Fraction(10)}
    x = Twice().batch()
    for policy, dtype in ((Policy(), torch.float16), (Policy(full=(pinned,)), torch.float32)):
        after = mpcompile.rewrite(program, policy)
        calls = [node for node in after.graph.nodes if op_name(node) == "scan"]
        assert [call.meta["val"][0].dtype for call in calls] == [dtype, dtype]
        refuse_mixed_dtypes(after)
        assert 0 < (run(after, x) - run(program, x)).abs().max() < 2.0**-8
        assert graph_text(mpcompile.rewrite(after, policy).graph) == graph_text(after.graph)


class Frozen(Flow):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.b(x)
        return cast(Tensor, self.a(x) + h)


def test_what_an_unknown_op_calls_stays_as_it_is() -> None:
    before = exported(Frozen)
    after = mpcompile.rewrite(before)
    old, new = all_graphs(before.graph_module), all_graphs(after.graph_module)
    assert len(old) == len(new) == 2
    for one, other in zip(old[1:], new[1:], strict=True):
        assert graph_text(one.graph) == graph_text(other.graph)
    x = Frozen().batch()
    assert 0 < (run(after, x) - run(before, x)).abs().max() < 2.0**-8


def test_a_graph_that_an_unknown_op_shares_stays_as_it_is() -> None:
    module = copy_graph(exported(Branch).graph_module)
    (call,) = [node for node in module.graph.nodes if op_name(node) == "cond"]
    with module.graph.inserting_before(call):
        again = module.graph.get_attr("true_graph_0")
        module.graph.call_function(
            torch.ops.higher_order.wrap_with_set_grad_enabled, (False, again, *call.args[3])
        )
    nest = nest_of(module)
    assert [inner.prefix for inner in nest.inners] == [""]
    assert not nest.borders


def test_rounds_multiply_and_a_branch_counts_half() -> None:
    nest = nest_of(exported(Gated).graph_module)
    body = "scan_combine_graph_0."
    assert {inner.prefix: inner.rounds for inner in nest.inners} == {
        "": Fraction(1),
        body: Fraction(5),
        f"{body}true_graph_0.": Fraction(5, 2),
        f"{body}false_graph_0.": Fraction(5, 2),
    }


def test_what_a_loop_collects_is_written_anew_and_what_enters_is_not() -> None:
    flow = flow_of(exported(Recurrent))
    by_id = {row.tensor.id: row for row in footprints(flow)}
    nest = nest_of(exported(Recurrent).graph_module)
    for border in [border for borders in nest.borders.values() for border in borders]:
        row = next(op for op in flow.ops if op.id == border.id)
        assert row.view == (border.kind is not BorderKind.STACK)
        for name in row.writes:
            assert by_id[name].written == (border.kind is BorderKind.STACK)


class Counting(Recurrent):
    """Carries a single number, which stays FP32, and one tensor as it came."""

    def forward(self, x: Tensor) -> Tensor:
        def cell(carry: tuple[Tensor, Tensor], x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            total, h = carry
            y = self.a(x) + h
            return (total + y.sum(), h.clone()), y

        (total, _), ys = scan(cell, (torch.zeros(()), torch.ones(4, 8)), x)
        return cast(Tensor, self.b(ys) + total)


def test_a_single_number_stays_fp32() -> None:
    after = mpcompile.rewrite(exported(Counting))
    (call,) = [node for node in after.graph.nodes if op_name(node) == "scan"]
    assert call.meta["val"][0].dtype is torch.float32
    refuse_mixed_dtypes(after)


def test_a_weight_is_cast_once_before_a_loop_and_inside_the_branch_that_needs_it() -> None:
    def where_cast(make: type[Flow], weight: str) -> list[str]:
        flow = flow_of(exported(make).run_decompositions({}))
        plan = make_plan(flow, Policy().precision)
        return [cast.tensor for cast in plan.casts if cast.tensor.endswith(weight)]

    assert where_cast(Repeat, "b_weight") == ["p_b_weight"]
    assert where_cast(Branch, "b_weight") == ["true_graph_0.p_b_weight"]
