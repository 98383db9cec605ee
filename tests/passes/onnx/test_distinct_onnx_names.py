"""Node names become distinct; the first of a name keeps it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from mpcompile.passes.onnx.distinct_onnx_names import distinct_onnx_names

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x, bool k) => (float[4] y) {
   [n] a = Relu (x)
   [n] b = Relu (a)
   ["n~2"] c = Relu (b)
   d = Relu (c)
   y = If (k) <
     then_branch = one () => (float[4] e) { [n] e = Tanh (d) },
     else_branch = two () => (float[4] f) { f = Tanh (d) }
   >
}
"""


def test_all_names_are_distinct_afterwards() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    assert distinct_onnx_names(model) == 2
    names = [node.name for node in model.graph.all_nodes() if node.name]
    assert names == ["n", "n~3", "n~2", "n~4"]
    assert distinct_onnx_names(model) == 0
