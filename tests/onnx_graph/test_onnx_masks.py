"""Numbers that FP16 cannot hold: masks may become smaller ones, all else keeps its reader FP32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import run

from mpcompile.onnx.comparison import compare
from mpcompile.onnx.rewrite import Rewritten, rewrite
from mpcompile.onnx_graph.masks import MASK
from mpcompile.plan.policy import Policy

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def rewritten(text: str, policy: Policy | None = None) -> tuple[Rewritten, onnx.ModelProto]:
    proto = onnx.parser.parse_model(HEAD + text)
    onnx.checker.check_model(proto, full_check=True)
    done = rewrite(proto, policy)
    after = ir.to_proto(done.model)
    onnx.checker.check_model(after, full_check=True)
    assert compare(ir.from_proto(proto), done).passed
    return done, after


ATTENTION = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) <float[8] mask = {{0, 0, 0, 0, 0, 0, {mask}}}> {{
   logits = MatMul (x, v)
   masked = Add (logits, mask)
   {middle}
   y = MatMul (p, v)
}}"""


def stored(done: Rewritten) -> dict[str, str]:
    return {decision.kind: decision.stores.short for decision in done.plan.decisions}


def test_a_mask_before_a_softmax_is_no_reason_for_fp32() -> None:
    text = ATTENTION.format(mask="-3.4e38, -1e9", middle="p = Softmax (masked)")
    done, after = rewritten(text)
    assert stored(done)["Add"] == stored(done)["Softmax"] == "f16"
    (mask,) = (onnx.numpy_helper.to_array(t) for t in after.graph.initializer)
    assert mask.dtype == np.float16
    assert mask.tolist() == [0.0] * 6 + [MASK, MASK]
    assert any("mask is a softmax mask" in note for note in done.notes)


def test_a_large_number_that_meets_anything_else_keeps_its_reader_in_fp32() -> None:
    text = ATTENTION.format(mask="-3.4e38, -1e9", middle="t = Tanh (masked) p = Softmax (t)")
    done, after = rewritten(text)
    assert stored(done)["Add"] == "f32"
    assert "becomes -inf in FP16" in done.plan.decision(done.plan.decisions[-4].op).reason
    assert [t.data_type for t in after.graph.initializer] == [onnx.TensorProto.FLOAT]


def test_what_a_softmax_reads_beside_a_large_positive_number_stays_fp32() -> None:
    done, _ = rewritten(ATTENTION.format(mask="-1e9, 1e9", middle="p = Softmax (masked)"))
    assert stored(done)["Add"] == stored(done)["Softmax"] == "f32"


PRODUCT = """g (float[4,8] x, float[8,8] v, {kind}[8] k) => (float[4,8] y) <float one = {{1}}, float far = {{-1e9}}> {{
   given = Cast <to = 1> (k)
   hidden = Sub (one, given)
   mask = Mul (hidden, far)
   logits = MatMul (x, v)
   masked = Add (logits, mask)
   p = Softmax (masked)
   y = MatMul (p, v)
}}"""


@pytest.mark.parametrize(("kind", "narrow"), [("int64", True), ("bool", True), ("double", False)])
def test_a_mask_that_is_computed_is_one_if_its_factor_is_whole(kind: str, narrow: bool) -> None:
    done, _ = rewritten(PRODUCT.format(kind=kind))
    assert (stored(done)["Softmax"] == "f16") is narrow


HIDDEN = """g (float[2,6] x, float[6,6] v, int64[2,6] k) => (float[2,6] y) <float one = {{1}}, float far = {{{far}}}> {{
   given = Cast <to = 1> (k)
   hidden = Sub (one, given)
   mask = Mul (hidden, far)
   logits = MatMul (x, v)
   {middle}
   y = MatMul (p, v)
}}"""
ADDED = "masked = Add (logits, mask) p = Softmax (masked)"


@pytest.mark.parametrize("far", ["-3.4e38", "-1e9"])
def test_a_row_that_is_hidden_as_a_whole_stays_even(far: str) -> None:
    text = HIDDEN.format(far=far, middle=ADDED)
    done, after = rewritten(text)
    assert stored(done)["Softmax"] == "f16"
    assert any("1 softmaxes read at least -16384" in note for note in done.notes)
    rng = np.random.default_rng(0)
    x, v = 3 * rng.standard_normal((2, 6)), rng.standard_normal((6, 6))
    shown = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    batch = {"x": x.astype(np.float32), "v": v.astype(np.float32), "k": shown}
    even = np.full(6, 1 / 6) @ v
    assert np.allclose(run(after, batch)[0][1], even, atol=2e-3)
    assert compare(ir.from_proto(onnx.parser.parse_model(HEAD + text)), done, [batch]).passed


def test_a_constant_mask_that_shows_something_in_each_row_needs_no_floor() -> None:
    _, after = rewritten(ATTENTION.format(mask="-3.4e38, -1e9", middle="p = Softmax (masked)"))
    assert "Max" not in [node.op_type for node in after.graph.node]
    everything = ATTENTION.replace("0, 0, 0, 0, 0, 0, {mask}", ", ".join(["-1e9"] * 8))
    _, after = rewritten(everything.format(middle="p = Softmax (masked)"))
    assert "Max" in [node.op_type for node in after.graph.node]
    assert not rewrite(after).changed


def test_the_runtime_itself_is_compared_too() -> None:
    """Pseudo FP16 rounds the sum of a mask and a logit to the mask; the runtime does not."""
    proto = onnx.parser.parse_model(HEAD + HIDDEN.format(far="-3.4e38", middle=ADDED))
    done = rewrite(proto)
    (floor,) = (node for node in done.model.graph if node.op_type == "Max")
    (masked, _) = floor.inputs
    assert masked is not None
    floor.outputs[0].replace_all_uses_with(masked)
    found = compare(ir.from_proto(proto), done)
    assert not found.passed
    assert found.first is not None
    assert found.first.tensor == "y"
    assert "MatMul" in found.first.node


def test_who_insists_on_16_bits_is_told_what_saturates() -> None:
    text = """g (float[4,2] x) => (float[4,2] y) <float[2,2] w = {1e6, 2, inf, 1e-9}> {
       y = MatMul (x, w)
    }"""
    proto = onnx.parser.parse_model(HEAD + text)
    assert not rewrite(proto).changed
    done = rewrite(proto, Policy(half=("op:MatMul",)))
    assert any("1 of 4 numbers of w are beyond FP16" in note for note in done.notes)
    (weight,) = (onnx.numpy_helper.to_array(t) for t in ir.to_proto(done.model).graph.initializer)
    assert weight.tolist() == [[65504.0, 2.0], [np.inf, 0.0]]


def test_the_sign_of_what_becomes_zero_stays() -> None:
    text = """g (float[4,2] x) => (float[4,2] y) <float[2,2] w = {-1e-9, 2, 3, 1e-9}> {
       y = MatMul (x, w)
    }"""
    done = rewrite(onnx.parser.parse_model(HEAD + text))
    (weight,) = (onnx.numpy_helper.to_array(t) for t in ir.to_proto(done.model).graph.initializer)
    assert np.signbit(weight).tolist() == [[True, False], [False, False]]


def test_an_epsilon_too_small_for_fp16_keeps_its_reader_in_fp32() -> None:
    text = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) <float eps = {1e-12}> {
       a = MatMul (x, v)
       b = Add (a, eps)
       y = MatMul (b, v)
    }"""
    done, _ = rewritten(text)
    assert stored(done)["Add"] == "f32"
