"""Plans reach into branches and loops: one dtype for each value on both sides of a border."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from expecttest import assert_expected_inline
from programs.flows import (
    FLOWS,
    Branch,
    Flow,
    Recurrent,
    Tensor,
    exported,
    flow_of,
    refuse_mixed_dtypes,
    run,
    scan,
)
from programs.random_flow import best, least

import mpcompile
from mpcompile.plan.policy import Policy
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.graph_text import graph_text
from mpcompile.torch_private.ops import op_name

each_flow = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


@each_flow
def test_the_result_is_close_and_rounded(make: type[Flow]) -> None:
    model = make()
    x = model.batch()
    after = mpcompile.rewrite(exported(make))
    with torch.no_grad():
        expected = model.plain(x)
    found = run(after, x)
    assert found.dtype is torch.float32
    # A handful of roundings to 11 bits on the way to results of about 1.
    assert 0 < (found - expected).abs().max() < 2.0**-8


@each_flow
def test_bfloat16_too(make: type[Flow]) -> None:
    model = make()
    after = mpcompile.rewrite(exported(make), Policy(precision=mpcompile.Precision.BF16))
    with torch.no_grad():
        expected = model.plain(model.batch())
    assert 0 < (run(after, model.batch()) - expected).abs().max() < 2.0**-4


@each_flow
def test_every_node_has_the_dtype_that_is_noted(make: type[Flow]) -> None:
    refuse_mixed_dtypes(mpcompile.rewrite(exported(make)))


@each_flow
def test_tensor_cores_work_inside(make: type[Flow]) -> None:
    after = mpcompile.rewrite(exported(make))
    linears = [
        node
        for module in all_graphs(after.graph_module)
        for node in module.graph.nodes
        if op_name(node) == "linear"
    ]
    assert linears
    assert all(item.meta["val"].dtype is torch.float16 for n in linears for item in n.args)


@each_flow
def test_what_came_in_is_not_changed_and_a_second_rewrite_changes_nothing(
    make: type[Flow], tmp_path: object
) -> None:
    before = exported(make)
    text = graph_text(before.graph)
    after = mpcompile.rewrite(before)
    assert graph_text(before.graph) == text
    assert graph_text(mpcompile.rewrite(after).graph) == graph_text(after.graph)
    torch.export.save(after, f"{tmp_path}/program.pt2")
    x = make().batch()
    assert torch.equal(run(torch.export.load(f"{tmp_path}/program.pt2"), x), run(after, x))


@each_flow
def test_the_fp32_policy_changes_nothing(make: type[Flow]) -> None:
    before = exported(make)
    after = mpcompile.rewrite(before, mpcompile.FULL_PRECISION)
    assert torch.equal(run(after, make().batch()), run(before, make().batch()))
    assert "f16" not in graph_text(after.graph)


@each_flow
def test_the_plan_is_the_best_of_all(make: type[Flow]) -> None:
    flow = flow_of(exported(make).run_decompositions({}))
    assert best(flow) == least(flow)


class Calm(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,)))


def test_without_a_tensor_core_op_nothing_changes() -> None:
    before = exported(Calm)
    assert graph_text(mpcompile.rewrite(before).graph) == graph_text(before.graph)


class CalmInside(Calm):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.cond(x.sum() > 0, lambda x: x.exp(), lambda x: x.log(), (x,))
        return cast(Tensor, self.a(x) + h)


def test_graphs_that_want_no_16_bits_have_none() -> None:
    before = exported(CalmInside)
    after = mpcompile.rewrite(before)
    for old, new in zip(
        all_graphs(before.graph_module)[1:], all_graphs(after.graph_module)[1:], strict=True
    ):
        assert graph_text(old.graph) == graph_text(new.graph)
    refuse_mixed_dtypes(after)


def test_a_branch() -> None:
    assert_expected_inline(
        graph_text(mpcompile.rewrite(exported(Branch)).graph),
        """\
p_a_weight      f32[8,8]  input
p_a_bias        f32[8]    input
p_b_weight      f32[8,8]  input
p_b_bias        f32[8]    input
x               f32[4,8]  input
p_a_weight_f16  f16[8,8]  _to_copy p_a_weight dtype=f16
p_a_bias_f16    f16[8]    _to_copy p_a_bias dtype=f16
x_f16           f16[4,8]  _to_copy x dtype=f16
linear          f16[4,8]  linear x_f16 p_a_weight_f16 p_a_bias_f16
linear_f32      f32[4,8]  _to_copy linear dtype=f32
sum_1           f32[]     sum linear_f32
gt              b8[]      gt sum_1 0
true_graph_0    ?         true_graph_0
false_graph_0   ?         false_graph_0
cond            tuple     cond gt true_graph_0 false_graph_0 [linear,p_b_bias,p_b_weight]
getitem         f32[4,8]  getitem cond 0
getitem_f16     f16[4,8]  _to_copy getitem dtype=f16
linear_1        f16[4,8]  linear getitem_f16 p_a_weight_f16 p_a_bias_f16
linear_1_f32    f32[4,8]  _to_copy linear_1 dtype=f32
return                    linear_1_f32

true_graph_0
linear          f16[4,8]  input
p_b_bias        f32[8]    input
p_b_weight      f32[8,8]  input
p_b_bias_f16    f16[8]    _to_copy p_b_bias dtype=f16
p_b_weight_f16  f16[8,8]  _to_copy p_b_weight dtype=f16
linear_1        f16[4,8]  linear linear p_b_weight_f16 p_b_bias_f16
relu            f16[4,8]  relu linear_1
relu_f32        f32[4,8]  _to_copy relu dtype=f32
return                    relu_f32

false_graph_0
linear      f16[4,8]  input
p_b_bias    f32[8]    input
p_b_weight  f32[8,8]  input
linear_f32  f32[4,8]  _to_copy linear dtype=f32
exp         f32[4,8]  exp linear_f32
return                exp""",
    )


def test_a_scan() -> None:
    assert_expected_inline(
        graph_text(mpcompile.rewrite(exported(Recurrent)).graph),
        """\
p_a_weight            f32[8,8]    input
p_a_bias              f32[8]      input
p_b_weight            f32[8,8]    input
p_b_bias              f32[8]      input
x                     f32[5,4,8]  input
zeros                 f16[4,8]    zeros [4,8] dtype=f16
scan_combine_graph_0  ?           scan_combine_graph_0
p_a_weight_f16        f16[8,8]    _to_copy p_a_weight dtype=f16
p_a_bias_f16          f16[8]      _to_copy p_a_bias dtype=f16
p_b_weight_f16        f16[8,8]    _to_copy p_b_weight dtype=f16
p_b_bias_f16          f16[8]      _to_copy p_b_bias dtype=f16
x_f16                 f16[5,4,8]  _to_copy x dtype=f16
scan                  tuple       scan scan_combine_graph_0 [zeros] [x_f16] [p_a_weight_f16,p_a_bias_f16,p_b_weight_f16,p_b_bias_f16]
getitem               f16[4,8]    getitem scan 0
getitem_1             f16[5,4,8]  getitem scan 1
linear                f16[5,4,8]  linear getitem_1 p_a_weight_f16 p_a_bias_f16
getitem_f32           f32[4,8]    _to_copy getitem dtype=f32
linear_f32            f32[5,4,8]  _to_copy linear dtype=f32
add                   f32[5,4,8]  add linear_f32 getitem_f32
return                            add

scan_combine_graph_0
arg0_1    f16[4,8]  input
arg1_1    f16[4,8]  input
arg2_1    f16[8,8]  input
arg3_1    f16[8]    input
arg4_1    f16[8,8]  input
arg5_1    f16[8]    input
linear    f16[4,8]  linear arg1_1 arg2_1 arg3_1
linear_1  f16[4,8]  linear arg0_1 arg4_1 arg5_1
add       f16[4,8]  add linear linear_1
tanh      f16[4,8]  tanh add
clone     f16[4,8]  clone tanh
return              tanh
return              clone""",
    )


def test_a_pinned_branch_stays_in_fp32_and_a_pinned_loop_carries_fp32() -> None:
    after = mpcompile.rewrite(exported(Branch), Policy(full=("true_graph_0.*",)))
    (true,) = [m for name, m in after.graph_module.named_children() if name == "true_graph_0"]
    (linear,) = true.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert linear.meta["val"].dtype is torch.float32
    refuse_mixed_dtypes(after)
    after = mpcompile.rewrite(exported(Recurrent), Policy(full=("scan/carry_0",)))
    (call,) = [node for node in after.graph.nodes if op_name(node) == "scan"]
    assert [value.dtype for value in call.meta["val"]] == [torch.float32, torch.float16]
    refuse_mixed_dtypes(after)
    assert (
        run(after, Recurrent().batch()) - Recurrent().plain(Recurrent().batch())
    ).abs().max() > 0


class InPlace(Branch):
    def yes(self, h: Tensor) -> Tensor:
        h = self.b(h)
        again = h.relu_()
        return h + again


def test_a_branch_that_works_in_place_is_made_functional() -> None:
    after = mpcompile.rewrite(exported(InPlace))
    x = InPlace().batch()
    with torch.no_grad():
        expected = InPlace().plain(x)
    assert 0 < (run(after, x) - expected).abs().max() < 2.0**-8


class Unread(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        h, _ = scan(self.cell, torch.zeros(4, 8), x)
        return cast(Tensor, self.a(h))


def test_what_a_loop_collects_for_nobody_costs_no_cast() -> None:
    after = mpcompile.rewrite(exported(Unread))
    (call,) = [node for node in after.graph.nodes if op_name(node) == "scan"]
    assert [value.dtype for value in call.meta["val"]] == [torch.float16, torch.float16]
    refuse_mixed_dtypes(after)
