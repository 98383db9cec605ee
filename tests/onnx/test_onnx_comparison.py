"""What counts as a difference between two models: by the size of an output, and by its role."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from programs.onnx_models import parsed

from mpcompile.onnx.comparison import compare, error_between
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx.roles import Probability, roles
from mpcompile.onnx_graph.gate import model_of


def roles_of(line: str, held: str = "", opset: int = 17) -> Probability | None:
    """Return the role of ``y`` in a graph of a matrix ``[4, 8]``."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    text = f"g (float[4,8] x, bool k) => (float[4,8] y) <{held}> {{ {line} }}"
    return roles(ir.from_proto(parsed(text, head))).get("y")


EACH = Probability()


@pytest.mark.parametrize(
    ("line", "role"),
    [
        ("y = Sigmoid (x)", EACH),
        ("y = HardSigmoid (x)", EACH),
        ("y = Softmax (x)", Probability(-1)),
        ("y = Softmax <axis = 0> (x)", Probability(0)),
        ("p = Softmax (x) y = Identity (p)", Probability(-1)),
        ("p = Softmax (x) y = Transpose (p)", EACH),
        ("p = Sigmoid (x) q = Softmax (x) y = Concat <axis = 0> (p, q)", EACH),
        ("p = Sigmoid (x) y = Concat <axis = 0> (p, x)", None),
        ("p = Sigmoid (x) q = Sigmoid (p) y = Mul (p, q)", EACH),
        ("p = Sigmoid (x) y = Mul (p, x)", None),
        ("p = Sigmoid (x) y = ReduceMean <axes = [0]> (p)", EACH),
        ("p = Sigmoid (x) q = Softmax (x) y = Where (k, p, q)", EACH),
        ("q = Sigmoid (x) p, y = Split <axis = 0> (q)", EACH),
        ("y = Tanh (x)", None),
        ("y = LogSoftmax (x)", None),
        ("y = Relu (x)", None),
        (
            "y = If (k) <then_branch = t () => (float[4,8] a) { a = Sigmoid (x) },"
            " else_branch = e () => (float[4,8] b) { c = Sigmoid (x) b = Identity (c) }>",
            EACH,
        ),
        (
            "y = If (k) <then_branch = t () => (float[4,8] a) { a = Sigmoid (x) },"
            " else_branch = e () => (float[4,8] b) { b = Relu (x) }>",
            None,
        ),
    ],
)
def test_probabilities_are_known_by_what_makes_them(line: str, role: Probability | None) -> None:
    assert roles_of(line) == role


def test_an_old_softmax_is_one_along_all_axes_from_its_own() -> None:
    assert roles_of("y = Softmax (x)", opset=11) == Probability(1, onward=True)
    wanted, found = np.full((2, 2, 2), 0.25), np.full((2, 2, 2), 0.25)
    found[0, :, 0] -= 0.05
    assert error_between(wanted, found, Probability(1)) == pytest.approx(0.05)
    assert error_between(wanted, found, Probability(1, onward=True)) == pytest.approx(0.05)
    found[0, :, 1] += 0.05
    assert error_between(wanted, found, Probability(1)) == pytest.approx(0.05)
    assert error_between(wanted, found, Probability(1, onward=True)) == pytest.approx(0.1)


def test_a_probability_near_zero_is_judged_by_one() -> None:
    wanted = np.array([1e-6, 2e-7], np.float32)
    found = wanted + np.float32(9e-8)
    assert error_between(wanted, found) == pytest.approx(0.09, rel=0.01)
    assert error_between(wanted, found, EACH) == pytest.approx(9e-8, rel=0.01)
    assert error_between(wanted, np.array([1e-6, 0.5]), EACH) == pytest.approx(0.5, rel=0.01)
    assert error_between(wanted, np.array([np.nan, 0]), EACH) == np.inf


def test_a_flat_distribution_is_not_right_because_its_numbers_are_small() -> None:
    wanted = np.full((1, 1000), 1e-3)
    found = wanted * np.where(np.arange(1000) % 2, 1.5, 0.5)
    assert error_between(wanted, found, Probability(-1)) == pytest.approx(0.25)
    assert error_between(wanted, wanted * 1.01, Probability(-1)) == pytest.approx(0.005)


def test_an_fp16_output_cannot_resolve_less_than_its_smallest_number() -> None:
    wanted = np.array([1e-7, 0.0], np.float32)
    assert error_between(wanted, wanted.astype(np.float16)) == 0.0
    assert error_between(wanted, wanted.astype(np.float16).astype(np.float32)) > 0.1


UNLIKELY = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) <float far = {-14}> {
   a = MatMul (x, v)
   b = Add (a, far)
   [last] y = KIND (b)
}"""


@pytest.mark.parametrize("kind", ["Sigmoid", "Softmax"])
def test_a_model_of_unlikely_things_passes(kind: str) -> None:
    model = parsed(UNLIKELY.replace("KIND", kind))
    batch = {"x": np.full((4, 8), 0.3, np.float32), "v": np.full((8, 8), 0.1, np.float32)}
    found = compare(model_of(model), rewrite(model), [batch])
    assert found.passed
    assert found.worst.error < 1e-6
    assert found.worst.scale == "a probability of 1"
