"""Unusual ONNX files: branches, loops, functions, quantised regions, nodes without names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import FLOW, FUNCTION, SCAN, Array, parsed, rewritten, run, stored

import mpcompile
from mpcompile.errors import BadInput
from mpcompile.onnx.comparison import casts_of, compare
from mpcompile.onnx.mixed_precision_pass import MixedPrecision
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision

MODELS = {"flow": FLOW, "scan": SCAN, "function": FUNCTION}
POLICIES = {
    "paper": Policy(),
    "careful": Policy(level=mpcompile.Level.CAREFUL),
    "tensor cores": Policy(level=mpcompile.Level.TENSOR_CORES_ONLY),
    "all": Policy(half=("*",)),
    "bf16": Policy(precision=Precision.BF16),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
@pytest.mark.parametrize("text", MODELS.values(), ids=list(MODELS))
def test_inner_graphs_are_rewritten_and_compute_the_same(text: str, policy: Policy) -> None:
    before = parsed(text)
    if policy.precision is Precision.BF16:  # a CPU has almost no BF16 kernels: valid, but not run
        assert rewritten(before, policy, Target.CUDA).casts
        assert not rewritten(before, policy, Target.CPU).casts
        return
    done = rewritten(before, policy)
    assert done.casts
    assert compare(ir.from_proto(before), done).passed


@pytest.mark.parametrize("text", MODELS.values(), ids=list(MODELS))
def test_a_second_rewrite_changes_nothing(text: str) -> None:
    once = ir.to_proto(rewritten(parsed(text)).model)
    again = rewrite(once)
    assert not again.changed
    assert ir.to_proto(again.model) == once


def test_the_fp32_policy_changes_nothing() -> None:
    before = parsed(FLOW)
    assert mpcompile.rewrite(before, mpcompile.FULL_PRECISION) is before


def test_a_loop_variable_has_one_precision_everywhere() -> None:
    found = stored(rewritten(parsed(FLOW)))
    assert found["Loop_y/carry_0"] == "f16"
    assert found["Loop_y/body/MatMul_product"] == "f16"
    found = stored(rewritten(parsed(FLOW), Policy(full=("node:Loop_y/carry_0",))))
    assert found["Loop_y/carry_0"] == "f32"


def test_another_order_of_nodes_gives_the_same_decisions() -> None:
    text = """g (float[4,8] x, float[8,8] v) => (float[4,8] y, float[4,8] z) {
       a = MatMul (x, v) b = Relu (a) y = Add (b, x) c = MatMul (x, v) z = Tanh (c)
    }"""
    one = parsed(text)
    other = parsed(text)
    nodes = list(other.graph.node)
    del other.graph.node[:]
    other.graph.node.extend([nodes[3], nodes[4], nodes[0], nodes[1], nodes[2]])
    assert stored(rewritten(one)) == stored(rewritten(other))


def test_nodes_with_the_same_name_get_different_names() -> None:
    before = parsed("""g (float[4,8] x, float[8,8] v) => (float[4,8] y) {
       [n] a = MatMul (x, v)
       [n] y = MatMul (a, v)
    }""")
    assert set(stored(rewritten(before))) == {"x", "v", "n", "n~2"} - {"x", "v"}


def test_an_op_of_another_domain_does_not_change() -> None:
    before = parsed("""g (float[4,8] x, float[8,8] v) => (float[4,8] y) <float[4,8] d> {
       a = MatMul (x, v)
       d = custom.Op (a)
       y = MatMul (d, v)
    }""")
    done = rewrite(before)
    node = next(node for node in done.model.graph if node.domain == "custom")
    assert node.inputs[0] is not None
    assert node.inputs[0].dtype is node.outputs[0].dtype is ir.DataType.FLOAT
    assert [n.op_type for n in done.model.graph].count("MatMul") == 2
    assert all(
        value is not None and value.dtype is ir.DataType.FLOAT16
        for n in done.model.graph
        if n.op_type == "MatMul"
        for value in n.inputs
    )


def test_values_of_unknown_type_do_not_change() -> None:
    before = parsed("""g (float[4,8] x, float[8,8] v) => (float[4,8] y) {
       a = MatMul (x, v)
       d = custom.Op (a)
       y = Add (d, a)
    }""")
    done = rewrite(before)
    assert "types of its tensors are unknown" in done.plan.decision("Add_y").reason


QUANTISED = """g (float[1,4,8,8] x, float[4,4,1,1] w2) => (float[1,4,8,8] y)
 <float s = {0.1}, int8 z = {0}, int8[4,4,1,1] w> {
   q = QuantizeLinear (x, s, z)
   d = DequantizeLinear (q, s, z)
   dw = DequantizeLinear (w, s, z)
   c = Conv (d, dw)
   p = QuantizeLinear (c, s, z)
   e = DequantizeLinear (p, s, z)
   r = Relu (e)
   y = Conv (r, w2)
}"""


def test_a_quantised_region_does_not_change() -> None:
    before = parsed(QUANTISED)
    weight = np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1)
    del before.graph.initializer[:]
    before.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array(0.1, np.float32), "s"),
            onnx.numpy_helper.from_array(np.array(0, np.int8), "z"),
            onnx.numpy_helper.from_array(weight, "w"),
        ]
    )
    done = rewritten(before)
    found = stored(done)
    assert found["Conv_c"] == "f32"
    assert found["Conv_y"] == "f16"
    assert "quantised" in done.plan.decision("Conv_c").reason


def test_inputs_and_outputs_may_become_narrow() -> None:
    before = parsed(FLOW)
    done = rewrite(before, keep_io=False)
    proto = ir.to_proto(done.model)
    onnx.checker.check_model(proto, full_check=True)
    types = {
        v.name: v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)
    }
    assert types == {"x": 10, "v": 10, "k": 9, "y": 10, "means": 1, "h": 10}
    assert casts_of(proto.graph) == {"f16 to f32": 1}


def test_a_graph_that_is_narrow_from_end_to_end_needs_no_cast() -> None:
    before = parsed("g (float[4,8] x, float[8,8] v) => (float[4,8] y) { y = MatMul (x, v) }")
    done = rewrite(before, keep_io=False)
    assert done.changed
    assert not done.casts
    assert {v.dtype for v in (*done.model.graph.inputs, *done.model.graph.outputs)} == {
        ir.DataType.FLOAT16
    }
    assert not rewrite(done.model, keep_io=False).changed


def test_an_edited_plan_is_applied_and_one_of_another_graph_is_refused() -> None:
    before = parsed(FLOW)
    plan = Plan.from_json(rewrite(before).plan.to_json())
    decisions = tuple(
        replace(d, computes=Precision.FP32, stores=Precision.FP32) if d.op == "MatMul_h" else d
        for d in plan.decisions
    )
    done = rewrite(before, plan=replace(plan, decisions=decisions))
    assert stored(done)["MatMul_h"] == "f32"
    assert compare(ir.from_proto(before), done).passed
    with pytest.raises(BadInput, match="the plan belongs to another graph"):
        rewrite(parsed(SCAN), plan=plan)


def test_weights_that_are_inputs_in_old_files_become_weights() -> None:
    before = parsed(
        "g (float[4,2] x, float[2,2] w) => (float[4,2] y) <float[2,2] w = {1, 2, 3, 4}> "
        "{ y = MatMul (x, w) }",
        '<ir_version: 3, opset_import: ["" : 8]>\n',
    )
    done = rewritten(before)
    proto = ir.to_proto(done.model)
    assert [item.name for item in proto.graph.input] == ["x"]
    assert [item.data_type for item in proto.graph.initializer] == [10]
    assert any("no longer inputs" in note for note in done.notes)


def test_a_default_of_an_input_stays_a_default() -> None:
    before = parsed("""g (float[4,2] x, float[2,2] w) => (float[4,2] y)
     <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }""")
    after = ir.to_proto(rewritten(before).model)
    one: dict[str, Array] = {"x": np.ones((4, 2), np.float32)}
    for inputs in (one, {**one, "w": np.eye(2, dtype=np.float32)}):
        assert np.allclose(run(after, inputs)[0], run(before, inputs)[0])


def test_a_pass_and_a_model_in_memory() -> None:
    before = parsed(FLOW)
    found = MixedPrecision()(ir.from_proto(before))
    assert found.modified
    assert not MixedPrecision()(found.model).modified
    assert isinstance(mpcompile.rewrite(before), onnx.ModelProto)
    assert isinstance(mpcompile.rewrite(ir.from_proto(before)), ir.Model)
    with pytest.raises(BadInput, match="not an ONNX model"):
        rewrite(3)  # type: ignore[arg-type]


def test_scopes_of_exporters_are_module_paths() -> None:
    before = parsed("""g (float[4,8] x, float[8,8] v) => (float[4,8] y) {
       ["/encoder/layer.0/MatMul"] a = MatMul (x, v)
       ["/head/MatMul"] y = MatMul (a, v)
    }""")
    found = stored(rewritten(before, Policy(full=("encoder",))))
    assert found["/encoder/layer.0/MatMul"] == "f32"
    assert found["/head/MatMul"] == "f16"


@pytest.mark.parametrize("opset", range(13, 24))
def test_every_opset_from_13(opset: int) -> None:
    text = """g (float[4,8] x, float[8,8] v) => (float[4,2] y) {
       a = MatMul (x, v)
       b = Softmax (a)
       c = Add (b, x)
       y = ReduceMax <keepdims = 1> (c)
    }""".replace("float[4,2] y", "float[1,1] y")
    before = parsed(text, f'<ir_version: 8, opset_import: ["" : {opset}]>\n')
    done = rewritten(before)
    assert done.model.opset_imports[""] == opset
    assert compare(ir.from_proto(before), done).passed
