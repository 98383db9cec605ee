"""The tables of needs of an ONNX graph: every line decides about something, and in this order."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import parsed

from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.needs import BORDER_NEEDS, NEEDS, SOURCE_NEEDS, BorderFacts, Facts
from mpcompile.plan.needs import settled
from mpcompile.plan.op_table import ONNX_RULES, UNKNOWN
from mpcompile.plan.rule import Wish

MADE = "made in FP32, not computed from FP32"
KERNEL = "no kernel"
STORED = ONNX_RULES["Identity"]  # whoever reads a constant decides
ADDS = "adding up in 16 bits would round every addend"


def facts(
    op: str,
    lacks: str = "",
    made: bool = False,
    overridden: bool = False,
    attributes: tuple[ir.Attr, ...] = (),
    outputs: int = 1,
) -> Facts:
    value = ir.Value(name="x")
    node = ir.Node("", op, [value, value], attributes, num_outputs=outputs)
    rule = STORED if op == "Constant" else ONNX_RULES[op]
    return Facts(node, rule, () if made else ("x",), ("y",), lacks, overridden)


ADDING = (ir.AttrString("reduction", "add"),)
SQUARE = ONNX_RULES["Pow"].why
MEAN = f"{ONNX_RULES['ReduceMean'].why}, but its 16-bit kernel would not"


@pytest.mark.parametrize(
    ("op", "free", "half", "full"),
    [
        (facts("Relu"), None, None, None),
        (facts("Cast"), *["the program itself asks for this dtype"] * 3),
        (facts("BatchNormalization", outputs=3), *["its running statistics are FP32"] * 3),
        (facts("BatchNormalization"), None, None, None),
        (facts("ScatterND", attributes=ADDING), ADDS, ADDS, ADDS),
        (facts("Mul"), SQUARE, None, None),
        (facts("Mul", overridden=True), None, None, None),
        (facts("Relu", KERNEL), KERNEL, KERNEL, None),
        (facts("ReduceMean"), MEAN, None, None),
        (facts("Softmax"), None, None, None),
        (facts("Relu", made=True), MADE, MADE, None),
        (facts("Constant", made=True), None, None, None),
        # Of two lines that apply the first one decides.
        (facts("ScatterND", KERNEL, attributes=ADDING), ADDS, ADDS, ADDS),
        (facts("Mul", KERNEL), SQUARE, KERNEL, None),
        (facts("ReduceMean", KERNEL), KERNEL, KERNEL, None),
        (facts("ReduceMean", made=True), MEAN, MADE, None),
        (facts("Relu", KERNEL, made=True), KERNEL, KERNEL, None),
    ],
)
def test_an_op_has_the_first_need_that_applies(
    op: Facts, free: str | None, half: str | None, full: str | None
) -> None:
    for wish, reason in ((Wish.FREE, free), (Wish.HALF, half), (Wish.FULL, full)):
        rule, found, why = settled(op, (op.rule, wish, "told"), NEEDS)
        assert (found, why) == ((wish, "told") if reason is None else (Wish.FULL, reason))
        assert rule is (ONNX_RULES["Pow"] if why == SQUARE else op.rule)


@pytest.mark.parametrize("wish", Wish)
def test_borders_and_defaults_have_their_needs(wish: Wish) -> None:
    told = (UNKNOWN, wish, "told")
    mixed = "it enters or leaves a graph together with other types"
    for together, lacks, reason in (
        (True, "", "told"),
        (True, KERNEL, KERNEL),
        (False, "", mixed),
        (False, KERNEL, mixed),
    ):
        assert settled(BorderFacts(together, lacks), told, BORDER_NEEDS)[2] == reason
    assert settled(False, told, SOURCE_NEEDS) == told
    assert settled(True, told, SOURCE_NEEDS)[1] is Wish.FULL


@pytest.mark.parametrize("constants", [False, True])
def test_weights_are_weights_as_initializers_and_as_constants(constants: bool) -> None:
    """A norm behind a convolution reads a layer's result, whose rounding is no reason for FP32."""
    rng = np.random.default_rng(0)
    weights = {"w": (8, 4, 3, 3), "scale": (8,), "shift": (8,), "mean": (8,), "spread": (8,)}
    model = parsed("""g (float[1,4,9,9] x) => (float[1,8,5,5] y) {
      [conv] a = Conv (x, w)
      [norm] b = BatchNormalization (a, scale, shift, mean, spread)
      [again] y = Conv (b, v)
    }""")
    arrays = {n: rng.uniform(0.5, 1.5, s).astype(np.float32) for n, s in weights.items()}
    arrays["v"] = rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    if constants:
        nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
        nodes += list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    else:
        model.graph.initializer.extend(tensors)
    decisions = {d.op: d.stores.short for d in rewrite(model).plan.decisions}
    assert {name: decisions[name] for name in ("conv", "norm")} == {"conv": "f16", "norm": "f16"}
