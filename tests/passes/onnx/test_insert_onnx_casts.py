"""Casts in ONNX graphs: one a tensor and precision, weights cast in the file, names kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from mpcompile.onnx.rewrite import rewrite
from mpcompile.plan.policy import Policy

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def model_of(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    onnx.checker.check_model(model, full_check=True)
    return model


def rewritten(model: onnx.ModelProto, policy: Policy | None = None) -> onnx.ModelProto:
    proto = ir.to_proto(rewrite(model, policy).model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model: onnx.ModelProto, **inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)  # type: ignore[no-any-return]


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type == "Cast"]


TWO_READERS = """g (float[4,8] x, float[8,8] v) => (float[4,8] y, float[4,8] z) {
   y = MatMul (x, v)
   z = MatMul (x, v)
}"""


def test_one_cast_serves_all_readers_and_outputs_keep_their_names() -> None:
    after = rewritten(model_of(TWO_READERS))
    assert casts(after) == [("x", "x_f16"), ("v", "v_f16"), ("y_f16", "y"), ("z_f16", "z")]
    assert [item.name for item in after.graph.output] == ["y", "z"]
    assert {item.type.tensor_type.elem_type for item in after.graph.output} == {1}


SHARED = """g (float[4,{n}] x) => (float[4,{n}] y, float[{n},{n}] e) <float[{n},{n}] w = {{{w}}}> {{
   y = MatMul (x, w)
   e = Exp (w)
}}"""


@pytest.mark.parametrize(("n", "twice"), [(4, True), (32, False)])
def test_a_weight_of_both_precisions_takes_the_fewer_bytes(n: int, twice: bool) -> None:
    numbers = ", ".join(str(k / n**2) for k in range(n * n))
    before = model_of(SHARED.format(n=n, w=numbers))
    after = rewritten(before)
    names = {item.name: item.data_type for item in after.graph.initializer}
    assert names["w"] == onnx.TensorProto.FLOAT
    assert ("w_f16" in names) is twice
    assert (("w", "w_f16") in casts(after)) is not twice
    x = np.ones((4, n), np.float32)
    wide = run(before, x=x)[1]
    assert np.array_equal(run(after, x=x)[1], wide)  # who reads FP32 reads what it read before


def test_a_weight_that_only_16_bit_ops_read_is_stored_in_16_bits_once() -> None:
    text = """g (float[4,2] x) => (float[4,2] y) <float[2,2] w = {1, 2, 3, 4}> {
       a = MatMul (x, w)
       y = MatMul (a, w)
    }"""
    after = rewritten(model_of(text))
    assert [(t.name, t.data_type) for t in after.graph.initializer] == [("w", 10)]
    assert ("w", "w_f16") not in casts(after)


def test_what_the_program_widened_itself_is_read_as_it_was() -> None:
    text = """g (float16[4,8] x, float16[8,8] v) => (float[4,8] y) {
       a = Cast <to = 1> (x)
       b = Cast <to = 1> (v)
       y = MatMul (a, b)
    }"""
    after = rewritten(model_of(text))
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Cast"]
    assert list(after.graph.node[0].input) == ["x", "v"]


def test_a_second_rewrite_changes_nothing() -> None:
    once = rewritten(model_of(TWO_READERS))
    again = rewrite(once)
    assert again.casts == 0
    assert ir.to_proto(again.model) == once


def test_without_a_matmul_the_model_comes_back_as_it_is() -> None:
    before = model_of("g (float[4] x) => (float[4] y) { a = Relu (x) y = Exp (a) }")
    assert onnx.printer.to_text(rewritten(before)) == onnx.printer.to_text(before)
