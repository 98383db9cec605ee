"""Small models on which converters to 16 bits are known to break, one weakness each.

They come from the issue trackers of `onnxconverter-common`, ONNX Runtime and NVIDIA's ModelOpt.
`CumSum` and `Max` are ops that the converters leave in FP32 ("blocked").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from bench.onnx.cases import Case

PREFIX = "weak/"
_HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "local" : 1]>'
_W = "float[4,4] w = {1,2,3,4, 5,6,7,8, 8,7,6,5, 4,3,2,1}"
_IO = "(float[4,4] x) => (float[4,4] y)"


@dataclass(frozen=True)
class WeakPoint:
    """A model that shows one weakness.

    Attributes:
        about: the weakness.
        text: the model in the syntax of `onnx.parser`.
        magnitude: the magnitude of its random inputs.
        emulated: judged by onnx's reference implementation, which computes FP16 in FP16 like a
            GPU; ONNX Runtime on a CPU does not.
        names: node names, because the text has none.
    """

    about: str
    text: str
    magnitude: float = 1.0
    emulated: bool = False
    names: tuple[str, ...] = ()


def _graph(body: str, held: str = "", border: str = _IO) -> str:
    return f"{_HEAD} g {border} <{held}> {{ {body} }}"


POINTS = {
    "constant over 65504": WeakPoint(
        "a divisor of 1e6 must not become 65504 or 1e4",
        _graph("m = MatMul(x, w) y = Div(m, c)", f"{_W}, float c = {{1000000.0}}"),
    ),
    "tiny negative constant": WeakPoint(
        "a factor of -1e-9 must not become -1e-7, 0 or positive",
        _graph("m = MatMul(x, w) y = Mul(m, c)", f"{_W}, float c = {{-0.000000001}}"),
    ),
    "mask of -1e9": WeakPoint(
        "what is masked is exactly 0 behind the softmax",
        _graph(
            "m = MatMul(x, w) a = Add(m, c) s = Softmax(a) y = MatMul(s, w)",
            f"{_W}, float[1,4] c = {{0, 0, -1000000000.0, -1000000000.0}}",
        ),
    ),
    "weight shared": WeakPoint(
        "a weight that a blocked op and a MatMul read",
        _graph("m = MatMul(x, w) n = Max(x, w) y = Add(m, n)", _W),
    ),
    "If with a blocked op": WeakPoint(
        "casts belong into the branch",
        _graph(
            "m = MatMul(x, w) s = ReduceSum<keepdims = 0>(x) b = Greater(s, zero)"
            " y = If(b) <"
            " then_branch = t () => (float[4,4] p) { p = CumSum(m, axis) },"
            " else_branch = e () => (float[4,4] q) { q = Relu(m) } >",
            f"{_W}, float zero = {{0.0}}, int64 axis = {{1}}",
        ),
    ),
    "Loop with a blocked op": WeakPoint(
        "a loop's state has one type everywhere",
        _graph(
            "y = Loop(three, on, x) <body = r (int64 i, bool c, float[4,4] s) =>"
            " (bool d, float[4,4] n) { d = Identity(c) m = MatMul(s, w) t = CumSum(m, axis)"
            " n = Tanh(t) }>",
            f"{_W}, int64 three = {{3}}, bool on = {{1}}, int64 axis = {{1}}",
        ),
        magnitude=0.0001,
    ),
    "two blocked readers": WeakPoint(
        "two blocked ops read one tensor",
        _graph(
            "m = MatMul(x, w) a = CumSum(m, axis) b = Max(m, x) y = Add(a, b)",
            f"{_W}, int64 axis = {{1}}",
        ),
        names=("matmul", "cumsum", "max", "add"),
    ),
    "unnamed nodes": WeakPoint(
        "names of casts must not come from node names",
        _graph(
            "m = MatMul(x, w) a = CumSum(m, axis) n = MatMul(a, w) y = CumSum(n, axis)",
            f"{_W}, int64 axis = {{1}}",
        ),
    ),
    "nodes of one name": WeakPoint(
        "the same, where all nodes are called alike",
        _graph(
            "m = MatMul(x, w) a = CumSum(m, axis) n = MatMul(a, w) y = CumSum(n, axis)",
            f"{_W}, int64 axis = {{1}}",
        ),
        names=("n", "n", "n", "n"),
        emulated=True,
    ),
    "casts of its own": WeakPoint(
        "an integer is cast to FP32 and added",
        _graph(
            "k = Cast<to = 7>(x) f = Cast<to = 1>(k) m = MatMul(x, w) y = Add(m, f)", _W
        ),
        magnitude=5.0,
    ),
    "already FP16": WeakPoint(
        "half of the model is FP16 by design",
        _graph(
            "h = Cast<to = 10>(x) k = Cast<to = 10>(w) m = MatMul(h, k) f = Cast<to = 1>(m)"
            " y = MatMul(f, w)",
            _W,
        ),
    ),
    "output read inside": WeakPoint(
        "an output of the graph that a node reads too",
        _graph(
            "m = MatMul(x, w) y = MatMul(m, w)",
            _W,
            "(float[4,4] x) => (float[4,4] m, float[4,4] y)",
        ),
    ),
    "weight as output": WeakPoint(
        "an initializer that leaves the graph",
        _graph("y = MatMul(x, w)", _W, "(float[4,4] x) => (float[4,4] y, float[4,4] w)"),
    ),
    "inner weights of one name": WeakPoint(
        "both branches hold a weight called k",
        _graph(
            "m = MatMul(x, w) s = ReduceSum<keepdims = 0>(x) b = Greater(s, zero)"
            " y = If(b) <"
            " then_branch = t () => (float[4,4] p) <float[4,4] k = {1,0,0,0, 0,1,0,0, 0,0,1,0,"
            " 0,0,0,1}> { p = MatMul(m, k) },"
            " else_branch = e () => (float[4,4] q) <float[4,4] k = {2,0,0,0, 0,2,0,0, 0,0,2,0,"
            " 0,0,0,2}> { q = MatMul(m, k) } >",
            f"{_W}, float zero = {{0.0}}",
        ),
    ),
    "LayerNorm in pieces": WeakPoint(
        "squares of 600 overflow in FP16",
        _graph(
            "m = MatMul(x, k) u = ReduceMean<axes = [1]>(m) d = Sub(m, u) q = Mul(d, d)"
            " v = ReduceMean<axes = [1]>(q) e = Add(v, c) r = Sqrt(e) n = Div(d, r)"
            " y = MatMul(n, k)",
            "float[4,4] k = {9,0,0,0, 0,-9,0,0, 0,0,5,0, 0,0,0,2}, float c = {0.00001}",
        ),
        magnitude=100.0,
        emulated=True,
    ),
    "mean of many": WeakPoint(
        "the sum of 400 numbers near 400 is over 65504, their mean is not",
        _graph(
            "m = MatMul(x, w) s = ReduceSum<keepdims = 0>(z) u = Div(s, n) y = Add(m, u)",
            f"{_W}, float n = {{400}}",
            "(float[4,4] x, float[400] z) => (float[4,4] y)",
        ),
        magnitude=500.0,
        emulated=True,
    ),
    "dtype as attribute": WeakPoint(
        "EyeLike and ConstantOfShape say FP32 in an attribute",
        _graph(
            "m = MatMul(x, w) i = EyeLike<dtype = 1>(m) s = Shape(m)"
            " c = ConstantOfShape<value = float[1] {0.5}>(s) a = Add(m, i) y = Add(a, c)",
            _W,
        ),
    ),
    "scales of Resize": WeakPoint(
        "its scales must be FP32, also where they are computed",
        _graph(
            "c = Conv(x, k) s = Mul(one, two) y = Resize<mode = \"linear\">(c, , s)",
            "float[1,1,1,1] k = {0.5}, float[4] one = {1, 1, 1, 1}, float[4] two = {1, 1, 2, 2}",
            "(float[1,1,4,4] x) => (float[1,1,8,8] y)",
        ),
    ),
    "sequence": WeakPoint(
        "a tensor goes through a sequence",
        _graph("m = MatMul(x, w) s = SequenceConstruct(m, x) y = SequenceAt(s, i)",
               f"{_W}, int64 i = {{0}}"),
    ),
    "op of another domain": WeakPoint(
        "an op that ONNX does not know takes what it took",
        _graph("m = MatMul(x, w) a = com.microsoft.BiasGelu(m, b) y = MatMul(a, w)",
               f"{_W}, float[4] b = {{1, 2, 3, 4}}"),
    ),
    "local function": WeakPoint(
        "a function that the model defines",
        _graph("a = local.Block(x, w) y = local.Block(a, w)", _W)
        + '<domain: "local", opset_import: ["" : 17]> Block(t, v) => (r) { m = MatMul(t, v)'
        " r = Tanh(m) }",
    ),
}  # fmt: skip


def names() -> list[str]:
    """Return the names of the cases, each with `PREFIX`."""
    return [f"{PREFIX}{name}" for name in POINTS]


def case_of(name: str) -> Case:
    """Return a weak point as a case: random inputs, and the outputs of onnx's reference.

    ONNX Runtime runs ops of its own domain.
    """
    import onnxruntime  # in the worker only

    point = POINTS[name.removeprefix(PREFIX)]
    model = onnx.parser.parse_model(point.text)
    for node, label in zip(model.graph.node, point.names, strict=False):
        node.name = label
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        feeds[value.name] = (random.uniform(0.5, 1, shape) * point.magnitude).astype(np.float32)
    if any(node.domain == "com.microsoft" for node in model.graph.node):
        right = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, feeds)
    else:
        right = ReferenceEvaluator(model).run(None, feeds)
    return Case(name, model, (([*feeds.values()], right),))
