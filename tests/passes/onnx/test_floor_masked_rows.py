"""A softmax reads no logit below the floor; several of a graph share one constant."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import parsed, run

from mpcompile.passes.onnx.floor_masked_rows import FLOOR, FloorMaskedRows

TWO = """g (float[2,3] x, float16[2,3] h, bool k) => (float[2,3] y, float16[2,3] z, float[2,3] c) {
   y = Softmax (x)
   z = Softmax (h)
   c = If (k) <
     then_branch = then () => (float[2,3] a) { a = Softmax (x) },
     else_branch = other () => (float[2,3] b) { b = Identity (x) }
   >
}"""


def softmaxes(model: ir.Model) -> tuple[ir.Node, ...]:
    return tuple(node for node in model.graph.all_nodes() if node.op_type == "Softmax")


def test_each_graph_and_dtype_has_a_floor_of_its_own() -> None:
    model = ir.from_proto(parsed(TWO))
    assert FloorMaskedRows(softmaxes(model))(model) == 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x = np.array([[1.0, -3e38, 2.0], [-3e38, -1e30, -np.inf]], np.float32)
    held = np.maximum(x, FLOOR).astype(np.float16)
    y, z, c = run(proto, {"x": x, "h": held, "k": np.array(True)})
    for found in (y, z, c):
        assert found[0] == pytest.approx([0.2689, 0, 0.7311], abs=1e-3)
        assert found[1] == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_one_constant_serves_all_of_a_graph_and_names_stay_unique() -> None:
    text = """g (float[2,3] x) => (float[2,3] y, float[2,3] x_floored) {
       y = Softmax (x)
       x_floored = Softmax (x)
    }"""
    model = ir.from_proto(parsed(text))
    assert FloorMaskedRows(softmaxes(model))(model) == 2
    assert len(model.graph.initializers) == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_an_old_max_takes_no_number_beside_a_tensor() -> None:
    model = ir.from_proto(
        parsed(
            "g (float[2,3] x) => (float[2,3] y) { y = Softmax (x) }",
            '<ir_version: 8, opset_import: ["" : 7]>',
        )
    )
    assert FloorMaskedRows(softmaxes(model))(model) == 0
    assert len(model.graph) == 1
