"""Lint of ONNX models from exporters, and of models in FP16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.onnx_program import read_program
from mpcompile.lint.rules import lint
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision

ERROR, WARNING, NOTE = Severity
TRACE = (
    'File "/home/me/net.py", line 12, in forward\n    x = self.block(x)\n'
    '  File "/home/me/net.py", line 31, in forward\n    return x\n'
    '  File "/venv/lib/python3/site-packages/torch/nn/functional.py", line 7, in log'
)


def found_in(
    folder: Path,
    nodes: list[onnx.NodeProto],
    shape: list[int | str],
    dtype: int = TensorProto.FLOAT,
    policy: Policy | None = None,
    **weights: np.ndarray,
) -> list[Finding]:
    """Write a model with one input ``x`` and one output ``y``, and run lint on it."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return list(lint(read_program(str(path), policy or Policy())))


def node(kind: str, reads: str, writes: str, **attributes: int) -> onnx.NodeProto:
    made = helper.make_node(kind, reads.split(), [writes], f"/block/{kind}")
    made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    made.metadata_props.append(
        onnx.StringStringEntryProto(key="pkg.torch.onnx.stack_trace", value=TRACE)
    )
    return made


def single(value: float) -> np.ndarray:
    return np.array(value, np.float32)


W = np.ones((8, 8), np.float32)


def test_the_logarithm_of_a_sigmoid_with_its_line_and_module(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Sigmoid", "h", "p"),
        node("Sub", "one p", "q"),
        node("Log", "q", "y"),
    ]
    (found,) = found_in(tmp_path, nodes, [4, 8], w=W, one=single(1.0))
    assert (found.rule, found.severity, found.op) == ("MP202", NOTE, "Sigmoid")
    policy = Policy(half=("op:Sigmoid",))
    (found,) = found_in(tmp_path, nodes, [4, 8], policy=policy, w=W, one=single(1.0))
    assert (found.rule, found.severity, found.op) == ("MP202", WARNING, "Sigmoid")
    assert found.node == "/block/Sigmoid"
    assert (found.where.module, found.where.file, found.where.line) == (
        "block",
        "/home/me/net.py",
        31,
    )
    fixed = [*nodes[:1], node("Neg", "h", "n"), node("Softplus", "n", "y")]
    assert found_in(tmp_path, fixed, [4, 8], w=W) == []


def test_a_mask_becomes_a_number_that_masks(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Add", "h mask", "m"),
        node("Softmax", "m", "s"),
        node("MatMul", "s v", "y"),
    ]
    mask = np.triu(np.full((8, 8), -1e9, np.float32), 1)
    (found,) = found_in(tmp_path, nodes, [8, 8], w=W, v=W, mask=mask)
    assert (found.rule, found.severity, found.op) == ("MP103", NOTE, "Add")
    assert "becomes -32768" in found.message
    small = np.triu(np.full((8, 8), -1e4, np.float32), 1)
    assert found_in(tmp_path, nodes, [8, 8], w=W, v=W, mask=small) == []


def test_a_constant_that_costs_a_matmul_is_a_warning(tmp_path: Path) -> None:
    nodes = [node("Add", "x c", "h"), node("MatMul", "h w", "m"), node("MatMul", "m v", "y")]
    (found,) = found_in(tmp_path, nodes, [8, 8], w=W, v=W, c=single(1e5))
    assert (found.rule, found.severity, found.op) == ("MP101", WARNING, "Add")
    assert found.detail == "1 Tensor-Core op"
    assert found_in(tmp_path, nodes, [8, 8], w=W, v=W, c=single(1e4)) == []


def test_an_epsilon_that_vanishes(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Abs", "h", "a"),
        node("Add", "a e", "g"),
        node("Div", "h g", "d"),
        node("MatMul", "d v", "y"),
    ]
    (found,) = found_in(tmp_path, nodes, [8, 8], w=W, v=W, e=single(1e-8))
    assert (found.rule, found.severity, found.op) == ("MP102", NOTE, "Add")
    assert "the constant 1e-08 becomes 0" in found.message
    assert found_in(tmp_path, nodes, [8, 8], w=W, v=W, e=single(1e-5)) == []


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("ReduceMean", "loses what is below 1/4,096 of it"),
        ("ReduceSum", "their mean magnitude is above 8"),
        ("ReduceL2", "their root mean square is above 2.8"),
    ],
)
def test_a_long_sum_in_a_model_in_fp16(tmp_path: Path, kind: str, says: str) -> None:
    nodes = [node(kind, "x", "y", keepdims=0)]
    (found,) = found_in(tmp_path, nodes, [8192], TensorProto.FLOAT16)
    assert (found.rule, found.severity, found.op) == ("MP301", WARNING, kind)
    assert "8,192 numbers in FP16 as the program itself asks for it" in found.message
    assert says in found.message
    assert found_in(tmp_path, nodes, [2048], TensorProto.FLOAT16) == []
    assert found_in(tmp_path, nodes, [8192]) == []


def test_misaligned_products(tmp_path: Path) -> None:
    for kind, attributes in (("MatMul", {}), ("Gemm", {"transB": 1})):
        weight = np.ones((64, 100), np.float32)
        held = weight.T.copy() if attributes else weight
        nodes = [node(kind, "x w", "y", **attributes)]
        (found,) = found_in(tmp_path, nodes, [2048, 64], w=held)
        assert (found.rule, found.op) == ("MP401", kind)
        assert found.message.startswith("100 outputs are no multiple of 8")
        aligned = np.ones((64, 104), np.float32)
        held = aligned.T.copy() if attributes else aligned
        assert found_in(tmp_path, nodes, [2048, 64], w=held) == []


def test_a_convolution_with_odd_channels(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "y")]
    (found,) = found_in(tmp_path, nodes, [8, 16, 32, 32], w=np.ones((12, 16, 3, 3), np.float32))
    assert found.message.startswith("12 output channels are no multiple of 8")
    assert found_in(tmp_path, nodes, [64, 3, 32, 32], w=np.ones((16, 3, 3, 3), np.float32)) == []


def test_open_dimensions_and_fp32_are_not_findings(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x x", "y")]
    assert found_in(tmp_path, nodes, ["n", "n"]) == []
    nodes = [node("MatMul", "x w", "y")]
    weight = np.ones((64, 100), np.float32)
    policy = Policy(precision=Precision.FP32)
    assert found_in(tmp_path, nodes, [2048, 64], policy=policy, w=weight) == []
