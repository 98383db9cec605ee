"""Small ONNX models for tests, as text."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from mpcompile.onnx.rewrite import Rewritten, rewrite
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.policy import Policy

Array = NDArray[np.generic]

HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1, "custom" : 1]>\n'

FLOW = """g (float[4,8] x, float[8,8] v, bool k) => (float[4,8] y, float[3] means, float[4,8] h)
 <int64 rounds = {3}, bool yes = {1}> {
   h = MatMul (x, v)
   start = If (k) <
     then_branch = then () => (float[4,8] a) { b = MatMul (h, v)  a = Softmax (b) },
     else_branch = other () => (float[4,8] c) { c = Relu (h) }
   >
   y, means = Loop (rounds, yes, start) <
     body = round (int64 i, bool go, float[4,8] state) => (bool on, float[4,8] next, float mean) {
       on = Identity (go)
       product = MatMul (state, v)
       next = Tanh (product)
       mean = ReduceMean <keepdims = 0> (next)
     }
   >
}"""

SCAN = """g (float[4,8] x, float[8,8] v, float[8] s) => (float[8] last, float[4,8] all) {
   z = MatMul (x, v)
   last, all = Scan <num_scan_inputs = 1,
     body = row (float[8] state, float[8] r) => (float[8] next, float[8] kept) {
       next = Add (state, r)
       kept = Tanh (next)
     }
   > (s, z)
}"""

FUNCTION = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) {
   a = local.Block (x, v)
   y = local.Block (a, v)
}
<domain: "local", opset_import: ["" : 17]>
Block (t, w) => (r) {
   m = MatMul (t, w)
   r = Relu (m)
}"""


def parsed(text: str, head: str = HEAD) -> onnx.ModelProto:
    """Return a model; it is checked, except for ops that ONNX does not know."""
    return onnx.parser.parse_model(head + text)


def rewritten(
    model: onnx.ModelProto, policy: Policy | None = None, target: Target = Target.ANY
) -> Rewritten:
    """Rewrite a model; the result must pass every check of ONNX."""
    done = rewrite(model, policy, target=target)
    proto = ir.to_proto(done.model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return done


def run(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """Run a model in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)  # type: ignore[no-any-return]


def stored(done: Rewritten) -> dict[str, str]:
    """Return, per op id, the precision that it stores."""
    return {decision.op: decision.stores.short for decision in done.plan.decisions}
