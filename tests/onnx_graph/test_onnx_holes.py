"""Known holes by the structure of ONNX models: what is claimed is checked before it is believed."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, ModelProto
from planted.onnx_holes import BRANCH, Holes, check_closed, opened, same, text_of

from mpcompile.errors import BadInput
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.gate import read_model

HOLES: Holes = {}


hole = partial(opened, HOLES)


@hole("holds 4 bytes, but its shape")
def raw_data_too_short(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(name="s", data_type=1, dims=[1_000_000], raw_data=bytes(4))


@hole("too large for a tensor")
def dimensions_beyond_64_bits(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(name="s", data_type=1, dims=[1 << 62, 1 << 62], raw_data=bytes(4))


@hole("too large for a tensor")
def dimensions_that_a_zero_hides(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(name="s", data_type=1, dims=[0, 1 << 62, 1 << 62])


@hole("negative dimension")
def negative_dimension(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(name="s", data_type=1, dims=[-1], raw_data=bytes(4))


@hole("65 dimensions")
def too_many_dimensions(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(name="s", data_type=1, dims=[1] * 65, raw_data=bytes(4))


@hole("no known dtype")
def undefined_dtype(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(name="s", data_type=0, dims=[1], raw_data=bytes(4))


@hole("its data twice")
def two_kinds_of_data(model: ModelProto, folder: Path) -> None:
    model.graph.initializer.add(
        name="s", data_type=1, dims=[1], raw_data=bytes(4), float_data=[1.0]
    )


@hole("segment")
def segment(model: ModelProto, folder: Path) -> None:
    tensor = model.graph.initializer.add(name="s", data_type=1, dims=[1], raw_data=bytes(4))
    tensor.segment.end = 1


@hole("a cycle, or the wrong order")
def cycle(model: ModelProto, folder: Path) -> None:
    model.graph.node[0].input[0] = "y"


@hole("defined twice")
def value_defined_twice(model: ModelProto, folder: Path) -> None:
    model.graph.node.add(op_type="Relu", input=["x"], output=["y"])


@hole("nothing makes")
def value_of_nowhere(model: ModelProto, folder: Path) -> None:
    model.graph.node[0].input[0] = "nowhere"


@hole("calls itself")
def function_calls_itself(model: ModelProto, folder: Path) -> None:
    same(
        model,
        text_of("""g (float[2] x) => (float[2] y) { y = f.A(x) }
        <domain: "f", opset_import: ["f": 1]> A(a) => (b) { b = f.B(a) }
        <domain: "f", opset_import: ["f": 1]> B(a) => (b) { b = f.A(a) }"""),
    )


@hole("expand to more than")
def functions_that_unfold_to_a_billion_nodes(model: ModelProto, folder: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { y = f.F0(x) }"
    for k in range(30):
        callee = "Relu" if k == 29 else f"f.F{k + 1}"
        text += f'<domain: "f", opset_import: ["": 17, "f": 1]> F{k} (a) => (c)'
        text += f"{{ b = {callee}(a) c = {callee}(b) }}"
    same(model, text_of(text))


@hole("nested|parts nested")
def cve_2024_7254_nested_types(model: ModelProto, folder: Path) -> None:
    given = model.graph.value_info.add(name="s").type
    for _ in range(20):
        given = given.sequence_type.elem_type
    given.tensor_type.elem_type = 1


@hole("nested more than 16 deep")
def nested_graphs(model: ModelProto, folder: Path) -> None:
    same(model, text_of(BRANCH))
    for _ in range(18):
        outer = model.graph.node[0]
        inner = onnx.NodeProto()
        inner.CopyFrom(outer)
        inner.output[0] = "a"
        branch = outer.attribute[0].g
        del branch.node[:]
        branch.node.append(inner)


@hole("inputs, but its op does not take this number")
def cve_2026_44512_node_without_inputs(model: ModelProto, folder: Path) -> None:
    """Version converters read a second input of Upsample that is not there."""
    del model.graph.node[0].input[1:]


@hole("wrong type")
def cve_2026_44512_attribute_of_another_type(model: ModelProto, folder: Path) -> None:
    node = model.graph.node.add(op_type="Gemm", input=["x", "w"], output=["spare"])
    node.attribute.add(name="transB", type=AttributeProto.FLOAT, f=1.0)


@hole("do not match in their inputs or outputs")
def branch_without_results(model: ModelProto, folder: Path) -> None:
    same(model, text_of(BRANCH))
    del model.graph.node[0].attribute[1].g.output[:]


@hole("split over devices")
def node_of_no_device(model: ModelProto, folder: Path) -> None:
    model.graph.node[0].device_configurations.add()


@hole("passes a graph to a function")
def function_of_a_graph(model: ModelProto, folder: Path) -> None:
    same(
        model,
        text_of("""g (float[2] x) => (float[2] y) { y = f.A(x) }
        <domain: "f", opset_import: ["": 17]> A(a) => (b) { b = Relu(a) }"""),
    )
    attribute = model.graph.node[0].attribute.add(name="held", type=AttributeProto.GRAPH)
    attribute.g.SetInParent()


@hole("but the model imports 17")
def functions_of_two_opsets(model: ModelProto, folder: Path) -> None:
    same(
        model,
        text_of("""g (float[2] x) => (float[2] y) { y = f.A(x) }
        <domain: "f", opset_import: ["": 13]> A(a) => (b) { b = Relu(a) }"""),
    )


@hole("imports no opset of it")
def domain_without_opset(model: ModelProto, folder: Path) -> None:
    model.graph.node[0].domain = "nowhere"


@hole("IR version")
def version_of_the_future(model: ModelProto, folder: Path) -> None:
    model.ir_version = 999


@pytest.mark.parametrize("name", HOLES)
def test_a_known_hole_is_closed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, pattern = HOLES[name]
    check_closed(case, pattern, tmp_path, capsys)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "empty"),
        (b"\x80\x04.", "not an ONNX file"),
        (b"\x08\x0a\x3a\x80\x80\x80\x80\x08", "the file is cut off"),
        (b"\x08\x0a\x3a\x80\x9e\xe8\x03" + b"\x0a\x00" * 4_000_000, "1,000,000 parts"),
        (b"\x08\x0a" + b"\x3a\x7f\x0a\x7d" * 3, "the file is cut off"),
        (b"\x08\x0a\x12\x01\xff", "not UTF-8"),
    ],
)
def test_no_model_at_all(tmp_path: Path, data: bytes, pattern: str) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BadInput, match=pattern):
        read_model(tmp_path / "model.onnx")


def test_a_pipe_in_place_of_the_model_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(BadInput, match="not a plain file"):
        read_model(tmp_path / "model.onnx")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(BadInput, match="too large"):
        read_model(tmp_path / "model.onnx")


def test_values_that_multiply_take_no_memory() -> None:
    """Inference would follow 2 ** 40 numbers that two small constants claim."""
    model = text_of("""g (float[1] x) => (float[n] y)
        <int64[1] a = {1048576}, int64[1] b = {1048576}>
        { s = Mul(a, b) z = ConstantOfShape(s) y = Add(x, z) }""")
    assert rewrite(model).model.graph.outputs[0].name == "y"
