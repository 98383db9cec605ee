"""Pseudo FP16 in an ONNX graph: every op rounds, as ONNX's own reference does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx.reference import ReferenceEvaluator

from mpcompile.onnx_graph.inference import infer_types
from mpcompile.passes.onnx.emulate_onnx_half import emulate_onnx_half

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float16[8] x, float16[8] y) => (float16[8] z, float16[8] s) {
   a = Add (x, y)
   s = Sub (a, y)
   z = Mul (s, s)
}
"""


def emulated() -> tuple[ir.Model, int]:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    infer_types(model)
    return model, emulate_onnx_half(model)


def test_each_op_rounds_as_the_reference_does() -> None:
    model, changed = emulated()
    assert changed == 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=8).astype(np.float16), "y": np.float16(100) + np.zeros(8, "e")}
    wanted = list(ReferenceEvaluator(onnx.parser.parse_model(TEXT)).run(None, inputs))
    providers = ["CPUExecutionProvider"]
    rounded = onnxruntime.InferenceSession(proto.SerializeToString(), providers=providers)
    for one, other in zip(wanted, rounded.run(None, inputs), strict=True):
        assert np.array_equal(one, other)
    # The runtime alone keeps FP32 between the ops: it loses no digit of x, and so is no oracle.
    plain = onnx.parser.parse_model(TEXT).SerializeToString()
    wide = onnxruntime.InferenceSession(plain, providers=providers).run(None, inputs)
    assert not np.array_equal(wide[1], wanted[1])


def test_overflow_shows() -> None:
    model, _ = emulated()
    inputs = {"x": np.full(8, 60000, np.float16), "y": np.full(8, 60000, np.float16)}
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert np.isinf(session.run(None, inputs)[1]).all()


def test_without_16_bit_tensors_nothing_changes() -> None:
    text = TEXT.replace("float16", "float")
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model)
    assert emulate_onnx_half(model) == 0
