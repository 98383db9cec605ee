"""What a file leaves out: outputs without a name, and dimensions that are -1."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import rewritten

from mpcompile.errors import BadInput
from mpcompile.onnx.comparison import compare
from mpcompile.onnx.measure import calibrate
from mpcompile.onnx.rewrite import Rewritten
from mpcompile.onnx_graph.gate import model_of
from mpcompile.precision import Precision

MATRIX = "float[4,4] w = {1,2,3,4, 5,6,7,8, 8,7,6,5, 4,3,2,1}"
STATISTICS = "float[4] s = {1,1,1,1}, float[4] z = {0,0,0,0}"
IMAGES = ("float[1,1,8,8] x", "float[1,1,7,7] y", "float[1,1,1,1] w = {2}")
SEQUENCE = (
    "float[4,1,3] x",
    f"int64[1] o = {{0}}, float[1,8,3] w = {{{','.join(['0.1'] * 24)}}}, "
    f"float[1,8,2] r = {{{','.join(['0.2'] * 16)}}}",
)


def model_with(
    body: str, held: str = MATRIX, given: str = "float[4,4] x", made: str = "float[4,4] y"
) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    return onnx.parser.parse_model(f"{head} g ({given}) => ({made}) <{held}> {{ {body} }}")


def leave_out(model: onnx.ModelProto, op_type: str, outputs: list[str]) -> onnx.ModelProto:
    """Give the node of a kind these outputs, of which those without a name are not made."""
    (node,) = (node for node in model.graph.node if node.op_type == op_type)
    del node.output[:]
    node.output.extend(outputs)
    return model


def checked(model: onnx.ModelProto) -> Rewritten:
    done = rewritten(model)
    assert done.changed
    assert compare(model_of(model), done).passed
    return done


def computes(done: Rewritten) -> dict[str, Precision]:
    return {decision.kind: decision.computes for decision in done.plan.decisions}


@pytest.mark.parametrize(
    ("op_type", "body", "outputs"),
    [
        ("Dropout", "a = MatMul(x, w) b = Dropout(a) y = MatMul(b, w)", ["b", ""]),
        (
            "LayerNormalization",
            "a = MatMul(x, w) b = LayerNormalization(a, s) y = MatMul(b, w)",
            ["b", "", ""],
        ),
        (
            "BatchNormalization",
            "a = MatMul(x, w) b = BatchNormalization(a, s, z, z, s) y = MatMul(b, w)",
            ["b", "", ""],
        ),
    ],
)
def test_an_output_without_a_name_is_none(op_type: str, body: str, outputs: list[str]) -> None:
    done = checked(leave_out(model_with(body, f"{MATRIX}, {STATISTICS}"), op_type, outputs))
    assert set(computes(done).values()) == {Precision.FP16}


def test_a_pool_without_its_indices() -> None:
    given, made, held = IMAGES
    body = "a = Conv(x, w) b = MaxPool<kernel_shape = [2,2]>(a) y = Conv(b, w)"
    done = checked(leave_out(model_with(body, held, given, made), "MaxPool", ["b", ""]))
    assert computes(done)["MaxPool"] is Precision.FP16


@pytest.mark.parametrize(
    ("outputs", "made", "then"),
    [
        (["y", "", ""], "float[4,1,1,2] y", ""),
        (["", "a", ""], "float[1,2] y", "y = Squeeze(a, o)"),
        (["", "", "a"], "float[1,2] y", "y = Squeeze(a, o)"),
        (["", "y", "a"], "float[1,1,2] y, float[1,1,2] a", ""),
    ],
)
def test_an_lstm_of_which_some_outputs_are_made(outputs: list[str], made: str, then: str) -> None:
    given, held = SEQUENCE
    model = model_with(f"p, q, s = LSTM<hidden_size = 2>(x, w, r) {then}", held, given, made)
    done = checked(leave_out(model, "LSTM", outputs))
    assert computes(done)["LSTM"] is Precision.FP16


def test_an_output_without_a_name_inside_a_branch() -> None:
    body = (
        "m = MatMul(x, w) y = If(on) <then_branch = t () => (float[4,4] p)"
        " { q = MatMul(m, w) p = Dropout(q) }, else_branch = e () => (float[4,4] r)"
        " { r = MatMul(m, w) }>"
    )
    model = model_with(body, f"{MATRIX}, bool on = {{1}}")
    (branch,) = (a.g for a in model.graph.node[1].attribute if a.name == "then_branch")
    branch.node[1].output.append("")
    assert computes(checked(model))["Dropout"] is Precision.FP16


def with_size(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Give the first dimension of the input and of the output a size."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


def test_a_dimension_of_minus_one_is_unknown_and_said_once() -> None:
    done = checked(with_size(model_with("a = MatMul(x, w) y = MatMul(a, w)"), -1))
    assert [note for note in done.notes if "-1" in note] == [
        "a dimension of x and 1 more is -1 in the file; it is taken for unknown"
    ]
    for value in (*done.model.graph.inputs, *done.model.graph.outputs):
        assert value.shape is not None
        assert isinstance(value.shape[0], ir.SymbolicDim)


@pytest.mark.parametrize("size", [-2, -(1 << 40)])
def test_other_negative_dimensions_are_refused(size: int) -> None:
    with pytest.raises(BadInput, match="negative dimension"):
        model_of(with_size(model_with("y = MatMul(x, w)"), size))


def test_a_model_with_outputs_left_out_is_calibrated() -> None:
    body = "a = MatMul(x, w) b = LayerNormalization(a, s) c = Sin(b) y = MatMul(c, w)"
    model = leave_out(
        model_with(body, f"{MATRIX}, {STATISTICS}"), "LayerNormalization", ["b", "", ""]
    )
    found = calibrate(model, [{"x": np.ones((4, 4), np.float32)}])
    assert {"a", "b", "c", "y"} <= found.values.keys()
