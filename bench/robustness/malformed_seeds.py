"""The valid models from which malformed models are made."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper

_HEAD = '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
_TEXTS = {
    "wide": "g (float[2,64] x) => (float[2,64] y) { a = MatMul(x, w)  y = Relu(a) }",
    "mlp": """g (float[n,64] x) => (float[n,64] y) {
       a = MatMul(x, w)  b = Relu(a)  c = Gemm<transB = 1>(b, w)  d = Softmax<axis = 1>(c)
       m = ReduceMean<axes = [1]>(d)  e = Sub(d, m)  y = Cast<to = 1>(e) }""",
    "image": """g (float[1,4,16,16] x) => (float[1,8] y)
       <int64[2] shape = {1, 8}> {
       a = Conv<kernel_shape = [1, 1]>(x, k)
       b = MaxPool<kernel_shape = [2, 2]>(a)
       c = GlobalAveragePool(b)  y = Reshape(c, shape) }""",
    "flow": """g (float[4,64] x, bool k) => (float[4,64] y, float[3] means)
       <int64 rounds = {3}, bool yes = {1}> {
       h = MatMul(x, w)
       start = If(k) <
         then_branch = t () => (float[4,64] a) { b = MatMul(h, w)  a = Softmax(b) },
         else_branch = e () => (float[4,64] c) { c = Relu(h) } >
       y, means = Loop(rounds, yes, start) <
         body = r (int64 i, bool go, float[4,64] state) => (bool on, float[4,64] next, float mean) {
           on = Identity(go)  p = MatMul(state, w)  next = Tanh(p)
           mean = ReduceMean<keepdims = 0>(next) } > }""",
    "scan": """g (float[4,64] x, float[64] s) => (float[64] last, float[4,64] all) {
       z = MatMul(x, w)
       last, all = Scan<num_scan_inputs = 1,
         body = row (float[64] state, float[64] r) => (float[64] next, float[64] kept) {
           next = Add(state, r)  kept = Tanh(next) } > (s, z) }""",
    "functions": """g (float[4,64] x) => (float[4,64] y) { a = local.Block<alpha = 0.5>(x, w)
       y = local.Block<alpha = 2.0>(a, w) }
       <domain: "local", opset_import: ["": 17, "local": 1]>
       Block<alpha>(t, u) => (r) { m = local.Inner(t, u)  r = LeakyRelu<alpha: float = @alpha>(m) }
       <domain: "local", opset_import: ["": 17]> Inner(t, u) => (m) { m = MatMul(t, u) }""",
    "quantized": """g (float[2,64] x) => (float[2,64] y)
       <float s = {0.1}, uint8 z = {128}> {
       q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  m = MatMul(d, w)
       r = QuantizeLinear(m, s, z)  e = DequantizeLinear(r, s, z)  y = Add(e, x) }""",
    "sequence": """g (float[2,64] x) => (float[2,64] y)
       <int64 zero = {0}> {
       m = MatMul(x, w)  s = SequenceConstruct(m, x)  a = SequenceAt(s, zero)
       c = Constant<value = float[1] {3.0}>()  y = Mul(a, c) }""",
}


@cache
def seeds() -> dict[str, onnx.ModelProto]:
    """Return small valid models by name; they are shared, so copy a model before changes."""
    random = np.random.default_rng(0)
    square = random.standard_normal((64, 64)).astype(np.float32) / 8
    kernel = random.standard_normal((8, 4, 1, 1)).astype(np.float32)
    found = {}
    for name, text in _TEXTS.items():
        model = onnx.parser.parse_model(_HEAD + text)
        weight = ("k", kernel) if name == "image" else ("w", square)
        model.graph.initializer.append(numpy_helper.from_array(weight[1], weight[0]))
        onnx.checker.check_model(model, full_check=True)
        found[name] = model
    return found
