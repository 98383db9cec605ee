"""Inputs that are made up: sizes and numbers are read from the graph, and tried until one runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from programs.onnx_models import parsed

from mpcompile.errors import BadInput
from mpcompile.onnx.made_up.input_readings import readings
from mpcompile.onnx.made_up.trials import Tried, made_up_inputs
from mpcompile.onnx.sessions import given_inputs
from mpcompile.onnx_graph.inference import infer_types

WEIGHTS = ", ".join(["0.1"] * 24)


def model_of(line: str, given: str, held: str = "", made: str = "float[A,B] y") -> ir.Model:
    return ir.from_proto(parsed(f"g ({given}) => ({made}) <{held}> {{ {line} }}"))


def tried(line: str, given: str, held: str = "", made: str = "float[A,B] y") -> list[Tried]:
    return made_up_inputs(model_of(line, given, held, made))


def shapes(found: list[Tried]) -> list[tuple[int, ...]]:
    return [next(iter(each.batch.values())).shape for each in found]


@pytest.mark.parametrize(
    ("line", "given", "held", "sizes"),
    [
        ("y = MatMul (x, w)", "float[N,K] x", "float[3,8] w", {1: 3}),
        ("y = MatMul (w, x)", "float[K,N] x", "float[8,3] w", {0: 3}),
        ("y = Gemm <transB = 1> (x, w)", "float[N,K] x", "float[8,3] w", {1: 3}),
        ("t = Transpose (x) y = MatMul (t, w)", "float[K,N] x", "float[3,8] w", {0: 3}),
        ("y = Conv (x, w)", "float[N,C,T] x", "float[4,3,2] w", {1: 3}),
        ("y = Conv <group = 2> (x, w)", "float[N,C,T] x", "float[4,3,2] w", {1: 6}),
        (
            "t = Transpose <perm = [0,3,1,2]> (x) y = Conv (t, w)",
            "float[N,H,W,C] x",
            "float[4,3,2,1] w",
            {3: 3},
        ),
        ("y = Add (x, w)", "float[N,K] x", "float[24] w", {1: 24}),
        (
            "u = Unsqueeze (x, a) y = Conv (u, w)",
            "float[C,T] x",
            "float[4,3,2] w, int64[1] a = {0}",
            {0: 3},
        ),
        ("y, h = LSTM <hidden_size = 1> (x, w)", "float[T,N,I] x", "float[1,4,6] w", {2: 6}),
        (
            "s = Sigmoid (x) t = Mul (s, x) y = MatMul (t, w)",
            "float[N,K] x",
            "float[3,8] w",
            {1: 3},
        ),
    ],
)
def test_sizes_are_read_from_weights(
    line: str, given: str, held: str, sizes: dict[int, int]
) -> None:
    filled = held.replace(" w", f" w = {{{WEIGHTS}}}")
    model = model_of(line, given, filled, "float y")
    infer_types(model)
    assert readings(given_inputs(model))["x"].sizes == sizes


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        ("y = Div (x, c)", 0, 255),
        ("t = Transpose (x) y = Div (t, c)", 0, 255),
        ("y = Div (x, sound)", -32768, 32768),
        ("y = Mul (x, part)", 0, 256),
        ("y = Sub (x, mean)", 0, 247),
        ("y = Log (x)", 0, 1),
        ("t = Add (x, eps) y = Log (t)", 0, 1),
        ("y = Sqrt (x)", 0, 1),
        ("y = Pow (x, power)", 0, 1),
        ("y = Clip (x, two, c)", 2, 255),
        ("y = Div (x, two)", None, None),
        ("y = Pow (x, two)", None, None),
        ("e = Exp (x) y = Log (e)", None, None),
    ],
)
def test_ranges_are_read_from_what_the_graph_does(
    line: str, low: float | None, high: float | None
) -> None:
    held = (
        "float c = {255}, float sound = {32768}, float part = {0.00390625}, float mean = {123.5},"
        " float eps = {0.000001}, float power = {0.3}, float two = {2}"
    )
    model = model_of(line, "float[N,K] x", held, "float y")
    infer_types(model)
    found = readings(given_inputs(model))["x"]
    assert found.low == low
    assert low is None or found.high == pytest.approx(high)


def test_a_model_of_fixed_sizes_gets_one_batch() -> None:
    (found,) = tried("y = Relu (x)", "float[2,3] x", made="float[2,3] y")
    assert found.batch["x"].shape == (2, 3)
    assert found.finite == 1


def test_open_sizes_get_several_lengths() -> None:
    assert shapes(tried("y = Relu (x)", "float[N,T] x", made="float[N,T] y")) == [(2, 2), (2, 7)]


def test_an_image_may_have_to_be_a_multiple_of_32() -> None:
    line = "r = Reshape (x, s) y = Relu (r)"
    held = "int64[3] s = {-1, 3, 1024}"
    found = tried(line, "float[N,3,H,W] x", held, "float[A,3,1024] y")
    assert shapes(found)[0][2:] == (64, 64)


def test_sound_may_have_to_be_long() -> None:
    line = "u = Unsqueeze (x, a) y = MaxPool <kernel_shape = [400], strides = [8]> (u)"
    found = tried(line, "float[N,T] x", "int64[1] a = {1}", "float[N,1,B] y")
    assert shapes(found)[0] == (2, 512)


def test_a_batch_may_have_to_be_one() -> None:
    line = "y = Reshape (x, s)"
    found = tried(line, "float[N,5] x", "int64[2] s = {1,5}", "float[1,5] y")
    assert shapes(found)[0] == (1, 5)


def test_a_state_shares_the_batch_of_the_input() -> None:
    held = f"float[1,8,3] w = {{{WEIGHTS}}}, float[1,8,2] r = {{{', '.join(['0.1'] * 16)}}}"
    line = "t = Transpose <perm = [1,0,2]> (x) y, h = LSTM <hidden_size = 2> (t, w, r, , , s, s)"
    model = model_of(line, "float[N,T,3] x, float[1,P,2] s", held, "float[A,1,B,2] y")
    found = made_up_inputs(model)
    assert found[0].batch["s"].shape[1] == found[0].batch["x"].shape[0]


def test_a_rate_is_one_that_the_model_knows() -> None:
    line = """is = Equal (rate, known) y = If (is) <
      then_branch = t () => (float[2,3] a) { a = Relu (x) },
      else_branch = e () => (float[2,3] b) { z = Reshape (x, wrong) b = Reshape (z, right) }>"""
    held = "int64 known = {16000}, int64[1] wrong = {7}, int64[2] right = {2,3}"
    (found,) = tried(line, "float[2,3] x, int64 rate", held, "float[2,3] y")
    assert found.batch["rate"] == 16000


def test_a_root_gets_positive_numbers() -> None:
    line = "t = Mul (x, half) r = Sqrt (t) y = Relu (r)"
    (found,) = tried(line, "float[2,3] x", "float half = {0.5}", "float[2,3] y")
    assert found.finite == 1
    assert found.batch["x"].min() >= 0


def test_a_rank_may_be_unknown() -> None:
    proto = parsed(
        f"g (float[2,3] x) => (float[2,8] y) <float[3,8] w = {{{WEIGHTS}}}> {{ y = MatMul (x, w) }}"
    )
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = made_up_inputs(ir.from_proto(proto))
    assert found[0].batch["x"].ndim >= 2
    assert found[0].batch["x"].shape[-1] == 3


def test_a_mask_also_hides_a_whole_row() -> None:
    line = """f = Cast <to = 1> (mask)
      h = Sub (one, f)
      m = Mul (h, far)
      s = Add (x, m)
      y = Softmax (s)"""
    held = "float one = {1}, float far = {-3e38}"
    found = tried(line, "float[2,5] x, int64[2,5] mask", held, "float[2,5] y")
    assert any(np.array_equal(each.batch["mask"][-1], np.zeros(5)) for each in found)


def test_a_function_tells_what_its_inputs_must_be() -> None:
    text = f"""g (float[N,K] x) => (float[N,8] y) <float[3,8] w = {{{WEIGHTS}}}> {{
       y = local.Layer (x, w)
    }}
    <domain: "local", opset_import: ["" : 17]>
    Layer (t, m) => (r) {{
       c = Constant <value_float = 255.0> ()
       s = Div (t, c)
       r = MatMul (s, m)
    }}"""
    found = made_up_inputs(ir.from_proto(parsed(text)))
    assert found[0].batch["x"].shape == (2, 3)
    assert found[0].batch["x"].max() > 10


def test_a_model_that_takes_nothing_is_said_with_the_first_reason() -> None:
    line = "y = Reshape (x, s)"
    with pytest.raises(BadInput, match="no made-up inputs run: the model does not run"):
        tried(line, "float[2,3] x", "int64[1] s = {7}", "float[7] y")
