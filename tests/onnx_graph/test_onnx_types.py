"""Tensors of an ONNX graph that cannot be 16 bits, whatever a policy says."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import rewritten

from mpcompile.onnx.rewrite import Rewritten
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision

ALL, ALL_BF16 = Policy(half=("*",)), Policy(precision=Precision.BF16, half=("*",))
HELD = "float[4,4] w = {1,2,3,4, 5,6,7,8, 8,7,6,5, 4,3,2,1}"


def forced(body: str, held: str = HELD, opset: int = 17, bf16: bool = False) -> Rewritten:
    """Rewrite a graph of one matrix to another, everything 16 bits that may be."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>'
        f"g (float[4,4] x) => (float[4,4] y) <{held}> {{ {body} }}"
    )
    if bf16:
        return rewritten(model, ALL_BF16, Target.CUDA)
    return rewritten(model, ALL)


def reasons(done: Rewritten) -> dict[str, str]:
    """Return, per kind of op in FP32, why."""
    full = (d for d in done.plan.decisions if d.computes is Precision.FP32)
    return {decision.kind: decision.reason for decision in full}


INTO, FROM = "m = MatMul(x, w) s = SequenceConstruct(m)", "y = SequenceAt(s, i)"
MVN = "r = Reshape(x, t) m = MeanVarianceNormalization<axes = [2, 3]>(r) u = Reshape(m, p)"
STAYS = {
    "SequenceAt": (f"{INTO} {FROM}", "a sequence"),
    "Bernoulli": ("m = MatMul(x, w) b = Bernoulli(w) y = Add(m, b)", "an attribute sets"),
    "EyeLike": ("m = MatMul(x, w) b = EyeLike(m) y = Add(m, b)", "an attribute sets"),
    "ScatterND": ('m = MatMul(x, w) y = ScatterND<reduction = "max">(m, j, k)', "scatters no"),
    "MeanVarianceNormalization": (f"{MVN} y = MatMul(u, w)", "definition"),
}


@pytest.mark.parametrize("kind", STAYS)
def test_it_stays_in_fp32_where_the_rest_does_not(kind: str) -> None:
    body, why = STAYS[kind]
    held = (
        f"{HELD}, int64 i = {{0}}, int64 n = {{4}}, int64[1,1] j = {{0}}, int64[4] t = {{1,1,4,4}},"
        " float[1,4] k = {1,2,3,4}, int64[2] p = {4,4}"
    )
    found = reasons(forced(body, held, opset=18))
    assert why in found[kind]
    assert "MatMul" not in found


@pytest.mark.parametrize("into", ["SequenceConstruct(m)", "SplitToSequence(m, n)"])
def test_what_goes_into_a_sequence_is_fp32(into: str) -> None:
    held = f"{HELD}, int64 i = {{0}}, int64 n = {{4}}"
    done = forced(f"m = MatMul(x, w) s = {into} {FROM}", held)
    ops = [node.op_type for node in done.model.graph]
    assert ops == ["Cast", "MatMul", "Cast", into.partition("(")[0], "SequenceAt"]


def test_a_product_of_a_tensor_with_itself_is_a_square() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4,4] x) => (float[4,4] y) '
        f"<{HELD}> {{ m = MatMul(x, w) q = Mul(m, m) e = Add(q, w) y = MatMul(e, w) }}"
    )
    full = reasons(rewritten(model))
    assert "Mul" in full
    assert "it follows" in full["Add"]
    assert "Mul" not in reasons(rewritten(model, Policy(half=("op:Mul",))))


@pytest.mark.parametrize("opset", [13, 14, 15, 21])
def test_a_batch_norm_is_of_one_type_and_stays_whole_where_it_trains(opset: int) -> None:
    held = f"{HELD}, float[4] s = {{1,2,3,4}}, float[4] v = {{4,3,2,1}}"
    infers = "m = MatMul(x, w) y = BatchNormalization(m, s, s, s, v)"
    trains = infers.replace("y =", "y, a, b =").replace("n(", "n<training_mode = 1>(")
    done = forced(infers, held, opset)
    assert not reasons(done)
    weights = done.model.graph.initializers.values()
    assert {value.dtype for value in weights} == {ir.DataType.FLOAT16}
    if opset > 13:
        assert "statistics" in reasons(forced(trains, held, opset))["BatchNormalization"]


def test_a_branch_hands_on_bf16_where_its_version_allows() -> None:
    body = (
        "m = MatMul(x, w) y = If(on) <then_branch = t () => (float[4,4] p) { p = MatMul(m, w) },"
        " else_branch = e () => (float[4,4] q) { q = MatMul(m, w) }>"
    )
    held = f"{HELD}, bool on = {{1}}"
    assert "If result" not in reasons(forced(body, held, opset=16, bf16=True))
    assert "allows no bf16" in reasons(forced(body, held, opset=13, bf16=True))["If result"]
    assert not forced(body, held, opset=12, bf16=True).changed
