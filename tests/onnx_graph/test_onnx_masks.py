"""Numbers that FP16 cannot hold: masks may become smaller ones, all else keeps its reader FP32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

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
