"""Switches of roundings: off, a graph computes what it did; on, what the 16-bit graph computes."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from mpcompile.onnx.sessions import run, session_of
from mpcompile.onnx_graph.inference import infer_types
from mpcompile.onnx_graph.nest import nest_of
from mpcompile.passes.onnx.switch_onnx_rounding import SWITCHES, SwitchOnnxRounding

PLAIN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[6] x, float[6] y) => (float[6] z, float[6] s) <float[1] w = {0.1}> {
   [first] a = Add (x, w)
   [second] s = Sub (a, y)
   [third] z = Mul (s, a)
}
"""
NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[6] x, bool k) => (float[6] z) {
   [first] a = Exp (x)
   [choice] z = If (k) <
     then_branch = t () => (float[6] b) { [second] b = Mul (a, x) },
     else_branch = e () => (float[6] c) { [third] c = Sub (a, x) }
   >
}
"""


def switched(text: str, *names: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model)
    nodes = {id.rpartition("/")[2]: node for node, id in nest_of(model.graph).nodes.items()}
    switches = {nodes[name]: k for k, name in enumerate(names)}
    assert SwitchOnnxRounding(switches, ir.DataType.FLOAT16)(model) == len(names)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def half(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.astype(np.float16).astype(np.float32)


def inputs() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=6).astype(np.float32) for name in "xy"}


@pytest.mark.parametrize("on", [*product([False, True], repeat=3)])
def test_each_op_rounds_what_it_reads_and_makes_if_its_switch_is_on(
    on: tuple[bool, ...],
) -> None:
    x, y = inputs().values()

    def rounded(number: int, value: NDArray[np.float32]) -> NDArray[np.float32]:
        return half(value) if on[number] else value

    w = np.array([0.1], np.float32)
    a = rounded(0, rounded(0, x) + rounded(0, w))
    s = rounded(1, rounded(1, a) - rounded(1, y))
    z = rounded(2, rounded(2, s) * rounded(2, a))
    with session_of(switched(PLAIN, "first", "second", "third"), as_written=True) as session:
        found = run(session, inputs() | {SWITCHES: np.array(on)})
    assert np.array_equal(np.asarray(found["s"]), s)
    assert np.array_equal(np.asarray(found["z"]), z)


@pytest.mark.parametrize("k", [True, False])
def test_ops_of_inner_graphs_have_switches_too(k: bool) -> None:
    x = inputs()["x"]
    a = np.exp(x)
    wanted = half(half(a) * half(x)) if k else a - x
    with session_of(switched(NESTED, "second"), as_written=True) as session:
        found = run(session, {"x": x, "k": np.array(k), SWITCHES: np.array([True])})
    assert np.allclose(np.asarray(found["z"]), wanted, rtol=1e-6, atol=0)


def test_old_op_sets_have_no_switches() -> None:
    text = PLAIN.replace('"" : 17', '"" : 8')
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model)
    before = ir.to_proto(model).SerializeToString()
    assert SwitchOnnxRounding({model.graph[0]: 0}, ir.DataType.FLOAT16)(model) == 0
    assert ir.to_proto(model).SerializeToString() == before
