"""Casts that nobody reads are dropped; casts that leave a graph stay."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from mpcompile.passes.onnx.drop_onnx_casts import drop_onnx_casts

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x) => (float16[4] y) {
   unread = Cast <to = 10> (x)
   chain = Cast <to = 10> (x)
   chained = Cast <to = 1> (chain)
   y = Cast <to = 10> (x)
}
"""


def test_only_the_cast_that_leaves_the_graph_stays() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    assert drop_onnx_casts(model) == 3
    assert [node.outputs[0].name for node in model.graph] == ["y"]
    assert drop_onnx_casts(model) == 0
