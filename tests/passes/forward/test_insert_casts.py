"""The casts of a plan stand in the graph, one a tensor and precision, before their first reader."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import WORKLOADS, tied
from torch import nn
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from mpcompile.passes.forward.insert_casts import InsertCasts
from mpcompile.pipeline import describe
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.program.capture import capture
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.torch_private.graphs import copy_graph, fake_mode_of


def test_casts_of_a_tied_embedding_with_norm_and_softmax() -> None:
    forward = capture(tied())
    plan = make_plan(describe(forward, Policy()), Policy().precision)
    assert InsertCasts(plan)(forward.module) == len(plan.casts)
    assert_expected_inline(
        graph_text(forward.module.graph),
        """\
p_model_words_weight      f32[10,8]  input
p_model_norm_weight       f32[8]     input
p_model_norm_bias         f32[8]     input
p_model_gate_weight       f32[8,8]   input
p_model_gate_bias         f32[8]     input
batch_0                   i64[6]     input
batch_1                   i64[6]     input
p_model_words_weight_f16  f16[10,8]  _to_copy p_model_words_weight dtype=f16
embedding                 f16[6,8]   embedding p_model_words_weight_f16 batch_0
embedding_f32             f32[6,8]   _to_copy embedding dtype=f32
layer_norm                f32[6,8]   layer_norm embedding_f32 [8] p_model_norm_weight p_model_norm_bias 1e-05 False
p_model_gate_weight_f16   f16[8,8]   _to_copy p_model_gate_weight dtype=f16
p_model_gate_bias_f16     f16[8]     _to_copy p_model_gate_bias dtype=f16
layer_norm_f16            f16[6,8]   _to_copy layer_norm dtype=f16
linear                    f16[6,8]   linear layer_norm_f16 p_model_gate_weight_f16 p_model_gate_bias_f16
linear_f32                f32[6,8]   _to_copy linear dtype=f32
softmax                   f32[6,8]   softmax linear_f32 -1
softmax_f16               f16[6,8]   _to_copy softmax dtype=f16
mul                       f16[6,8]   mul layer_norm_f16 softmax_f16
linear_1                  f16[6,10]  linear mul p_model_words_weight_f16
linear_1_f32              f32[6,10]  _to_copy linear_1 dtype=f32
cross_entropy_loss        f32[]      cross_entropy_loss linear_1_f32 batch_1
return                               cross_entropy_loss""",
    )


def test_the_result_is_rounded_but_close() -> None:
    for make in WORKLOADS.values():
        workload = make()
        forward = capture(workload)
        before = copy_graph(forward.module)
        plan = make_plan(describe(forward, Policy()), Policy().precision)
        InsertCasts(plan)(forward.module)
        values = [item.tensor.detach() for item in forward.inputs]
        expected = before(*[v.double() if v.is_floating_point() else v for v in values])[-1]
        found = copy_graph(forward.module)(*values)[-1]
        assert found.dtype is torch.float32
        # A handful of roundings to 11 bits on the way to a loss of about 2.
        assert 0 < abs(float(found) - float(expected)) < 16 * 2.0**-11


def test_every_reader_gets_the_precision_the_plan_says() -> None:
    forward = capture(tied())
    plan = make_plan(describe(forward, Policy()), Policy().precision)
    InsertCasts(plan)(forward.module)
    nodes = {node.name: node for node in forward.module.graph.nodes}
    for cast in plan.casts:
        node = nodes[cast.id.replace(".", "_")]
        assert str(node.meta["val"].dtype) == f"torch.{cast.to.value}"
        assert {user.name for user in node.users} >= set(cast.readers) - {"output"}
    for decision in plan.decisions:
        value = nodes[decision.op].meta["val"]
        if isinstance(value, torch.Tensor) and decision.computes is decision.stores:
            assert str(value.dtype) == f"torch.{decision.stores.value}", decision


def test_a_plan_that_changes_nothing_changes_nothing() -> None:
    forward = capture(tied())
    text = graph_text(forward.module.graph)
    plan = make_plan(describe(forward, FULL_PRECISION), FULL_PRECISION.precision)
    assert InsertCasts(plan)(forward.module) == 0
    assert graph_text(forward.module.graph) == text


def test_a_second_run_finds_the_casts_there() -> None:
    forward = capture(tied())
    plan = make_plan(describe(forward, Policy()), Policy().precision)
    InsertCasts(plan)(forward.module)
    text = graph_text(forward.module.graph)
    assert InsertCasts(plan)(forward.module) == 0
    assert graph_text(forward.module.graph) == text


def test_a_tensor_read_twice_by_one_op_is_cast_once() -> None:
    model = nn.Linear(4, 4)
    workload = Workload(
        model,
        (torch.randn(3, 4),),
        lambda model, x: (model(x) @ model(x).t()).sum(),
        torch.optim.SGD(model.parameters(), lr=0.1),
    )
    forward = capture(workload)
    plan = make_plan(describe(forward, Policy()), Policy().precision)
    casts = [cast.tensor for cast in plan.casts]
    assert len(casts) == len(set(casts))
    assert InsertCasts(plan)(forward.module) == len(casts)


def test_the_dtypes_it_notes_are_those_that_running_the_graph_gives() -> None:
    for make in WORKLOADS.values():
        forward = capture(make())
        plan = make_plan(describe(forward, Policy()), Policy().precision)
        InsertCasts(plan)(forward.module)
        noted = {n: n.meta["val"] for n in forward.module.graph.nodes if n.op != "output"}
        inputs = [noted[node] for node in forward.module.graph.find_nodes(op="placeholder")]
        mode = fake_mode_of(forward.module.graph)
        FakeTensorProp(forward.module, mode).propagate_dont_convert_inputs(*inputs)
        for node, value in noted.items():
            if isinstance(value, torch.Tensor):
                assert node.meta["val"].dtype is value.dtype, node
                assert node.meta["val"].shape == value.shape, node
