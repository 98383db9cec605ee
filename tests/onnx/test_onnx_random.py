"""Random ONNX graphs: the rewrite is valid, close to FP32, and a second one changes nothing."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from programs.onnx_models import Array, rewritten, run, stored

from mpcompile.onnx.comparison import compare, error_between
from mpcompile.onnx.rewrite import rewrite
from mpcompile.passes.onnx.distinct_onnx_names import distinct_onnx_names
from mpcompile.plan.policy import Level, Policy

many = settings(max_examples=150, deadline=None)
SHAPE = (4, 8)
FULL = TensorProto.FLOAT
UNARY = "Relu Tanh Sigmoid Softmax Identity Neg Abs Dropout Softplus Erf".split()
BINARY = "Add Sub Mul Max Min".split()


class Maker:
    """Makes a random graph over tensors of one shape, branches and loops among them."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.count = 0
        self.numbers = np.random.default_rng(seed)

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def weight(self, *shape: int, scale: float = 0.3) -> onnx.TensorProto:
        numbers = self.numbers.normal(size=shape).astype(np.float32) * scale
        return numpy_helper.from_array(numbers, self.name())

    def body(
        self, known: list[str], size: int, depth: int
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[str]]:
        """Return nodes, weights, and the names of the new values."""
        nodes: list[onnx.NodeProto] = []
        weights: list[onnx.TensorProto] = []
        made: list[str] = []
        for _ in range(size):
            seen = known + made
            pick, out = self.choose.choice, self.name()
            kind = self.choose.random()
            label = self.choose.choice(["", "", "same"])
            if kind < 0.3:
                shared = [w.name for w in weights if w.dims[:] == [8, 8]]
                if shared and self.choose.random() < 0.3:
                    weight = pick(shared)
                else:
                    weights.append(self.weight(8, 8))
                    weight = weights[-1].name
                nodes.append(helper.make_node("MatMul", [pick(seen), weight], [out], name=label))
            elif kind < 0.5:
                nodes.append(helper.make_node(pick(UNARY), [pick(seen)], [out], name=label))
            elif kind < 0.7:
                nodes.append(helper.make_node(pick(BINARY), [pick(seen), pick(seen)], [out]))
            elif kind < 0.75:
                weights.append(self.weight(8))
                nodes.append(helper.make_node("Add", [pick(seen), weights[-1].name], [out]))
            elif kind < 0.8:
                scale, bias = self.weight(8, scale=1.0), self.weight(8)
                weights += [scale, bias]
                inputs = [pick(seen), scale.name, bias.name]
                nodes.append(helper.make_node("LayerNormalization", inputs, [out]))
            elif kind < 0.85:
                mean = self.name()
                source = pick(seen)
                nodes.append(helper.make_node("ReduceMean", [source], [mean], axes=[-1]))
                nodes.append(helper.make_node("Sub", [source, mean], [out]))
            elif kind < 0.9:
                number = self.choose.choice([0.5, 3.0, 1e6])
                value = numpy_helper.from_array(np.array(number, np.float32))
                small, spare = self.name(), self.name()
                nodes.append(helper.make_node("Constant", [], [small], value=value))
                nodes.append(helper.make_node("Mul", [pick(seen), small], [spare]))
                nodes.append(helper.make_node("Tanh", [spare], [out]))
            elif kind < 0.95 and depth:
                branches = [self.graph(seen, depth - 1, [], []) for _ in range(2)]
                nodes.append(
                    helper.make_node(
                        "If", ["k"], [out], then_branch=branches[0], else_branch=branches[1]
                    )
                )
            elif depth:
                state = self.name()
                given = [
                    helper.make_tensor_value_info(self.name(), TensorProto.INT64, []),
                    helper.make_tensor_value_info(self.name(), TensorProto.BOOL, []),
                    helper.make_tensor_value_info(state, FULL, SHAPE),
                ]
                body = self.graph([*seen, state], depth - 1, given, [given[1].name])
                nodes.append(helper.make_node("Loop", ["n", "yes", pick(seen)], [out], body=body))
            else:
                nodes.append(helper.make_node("Tanh", [pick(seen)], [out]))
            made.append(out)
        return nodes, weights, made

    def graph(
        self, known: list[str], depth: int, inputs: list[onnx.ValueInfoProto], passed: list[str]
    ) -> onnx.GraphProto:
        """Return an inner graph that makes one tensor, after the values that it passes on."""
        nodes, weights, made = self.body(known, self.choose.randint(1, 4), depth)
        outputs = [helper.make_tensor_value_info(made[-1], FULL, SHAPE)]
        for name in passed:
            again = self.name()
            nodes.append(helper.make_node("Identity", [name], [again]))
            outputs.insert(0, helper.make_tensor_value_info(again, TensorProto.BOOL, []))
        return helper.make_graph(nodes, self.name(), inputs, outputs, weights)

    def model(self) -> onnx.ModelProto:
        nodes, weights, made = self.body(["x"], self.choose.randint(3, 14), 2)
        outputs = {made[-1], self.choose.choice(made)}
        graph = helper.make_graph(
            nodes,
            "g",
            [
                helper.make_tensor_value_info("x", FULL, SHAPE),
                helper.make_tensor_value_info("k", TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info(name, FULL, SHAPE) for name in sorted(outputs)],
            [
                *weights,
                numpy_helper.from_array(np.array(2), "n"),
                numpy_helper.from_array(np.array(True), "yes"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


POLICIES = (
    Policy(),
    Policy(level=Level.CAREFUL),
    Policy(level=Level.TENSOR_CORES_ONLY),
    Policy(half=("op:Add", "op:Tanh"), full=("op:Relu",)),
)


@pytest.mark.filterwarnings("ignore::mpcompile.UnmatchedOverride")
@many
@given(st.integers(0, 2**31), st.sampled_from(POLICIES), st.booleans())
def test_random_graphs_stay_valid_and_close(seed: int, policy: Policy, k: bool) -> None:
    before = Maker(seed).model()
    done = rewritten(before, policy)
    again = rewrite(ir.to_proto(done.model), policy)
    assert not again.changed
    x = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    batch: dict[str, Array] = {"x": x, "k": np.array(k)}
    # A random chain may magnify an error as much as a change of its input.
    found = compare(ir.from_proto(before), done, [batch], tolerance=2.0**-4)
    assert all(np.isfinite(each.error) for each in found.outputs)
    shaken = compare_inputs(before, batch)
    for each in found.outputs:
        # x + y - (y + x) is rounding only: no 16-bit format can get it right.
        if (change := shaken.get(each.tensor, 0.0)) < 0.5:
            assert each.error <= 2.0**-5 + 40 * change, each


def compare_inputs(model: onnx.ModelProto, batch: dict[str, Array]) -> dict[str, float]:
    """Return how much each output changes if the input is rounded to FP16 once."""
    named = ir.from_proto(model)
    distinct_onnx_names(named)
    model = ir.to_proto(named)
    rounded = {**batch, "x": batch["x"].astype(np.float16).astype(np.float32)}
    names = [item.name for item in model.graph.output]
    pairs = zip(names, run(model, batch), run(model, rounded), strict=True)
    return {name: error_between(one, other) for name, one, other in pairs}


@many
@given(st.integers(0, 2**31))
def test_decisions_do_not_depend_on_the_order_of_weights(seed: int) -> None:
    before, other = Maker(seed).model(), Maker(seed).model()
    weights = list(other.graph.initializer)
    random.Random(seed).shuffle(weights)
    del other.graph.initializer[:]
    other.graph.initializer.extend(weights)
    assert stored(rewritten(before)) == stored(rewritten(other))
