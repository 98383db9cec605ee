"""What the gate reads and writes: weights stay where they are, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from mpcompile.errors import BadInput
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.gate import model_of, read_model, write_model

WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def linear() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[2, 64] x) => (float[2, 64] y) { a = MatMul(x, w)  y = Relu(a) }
    """)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return model


def text_of(model: onnx.ModelProto) -> str:
    """Return a graph as text, without what it says of the values inside it."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.value_info[:]
    return onnx.printer.to_text(graph)


def weight_of(model: ir.Model) -> np.ndarray:
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def test_a_model_comes_back(tmp_path: Path) -> None:
    (file,) = write_model(model_of(linear()), tmp_path / "a.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    assert text_of(onnx.load(file)) == text_of(linear())
    np.testing.assert_array_equal(weight_of(read_model(file)), WEIGHT)


def test_large_weights_stand_in_a_file_beside(tmp_path: Path) -> None:
    files = write_model(model_of(linear()), tmp_path / "a.onnx", external_above=0)
    assert files == [tmp_path / "a.onnx", tmp_path / "a.onnx.data"]
    assert sorted(tmp_path.iterdir()) == files
    assert files[1].read_bytes() == WEIGHT.tobytes()
    onnx.checker.check_model(str(files[0]), full_check=True)
    np.testing.assert_array_equal(weight_of(read_model(files[0])), WEIGHT)


def test_writing_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = model_of(linear())
    tensor = model.graph.initializers["w"].const_value
    write_model(model, tmp_path / "a.onnx", external_above=0)
    assert model.graph.initializers["w"].const_value is tensor
    assert text_of(ir.to_proto(model)) == text_of(linear())


def test_a_model_outlives_the_files_it_was_read_from(tmp_path: Path) -> None:
    """Its weights are still on the disk, and half of the new ones are computed from them."""
    path = tmp_path / "a.onnx"
    write_model(model_of(linear()), path, external_above=0)
    model = read_model(path)
    narrow = rewrite(model)
    write_model(narrow.model, path, force=True, external_above=0)
    np.testing.assert_array_equal(weight_of(model), WEIGHT)
    held = [value.const_value for value in read_model(path).graph.initializers.values()]
    assert [tensor.numpy().tolist() for tensor in held if tensor is not None] == [
        WEIGHT.astype(np.float16).tolist()
    ]


def test_a_data_file_of_another_model_is_refused(tmp_path: Path) -> None:
    _, data = write_model(model_of(linear()), tmp_path / "a.onnx", external_above=0)
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(BadInput, match="not the file that the model was written with"):
        read_model(tmp_path / "a.onnx")


@pytest.mark.parametrize("there", ["a.onnx", "a.onnx.data"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(BadInput, match="already exists"):
        write_model(model_of(linear()), tmp_path / "a.onnx", external_above=0)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    write_model(model_of(linear()), tmp_path / "a.onnx", force=True, external_above=0)
    np.testing.assert_array_equal(weight_of(read_model(tmp_path / "a.onnx")), WEIGHT)


@pytest.mark.parametrize("there", ["a.onnx", "a.onnx.data"])
@pytest.mark.parametrize("dangling", [True, False])
def test_no_link_is_followed_when_writing(tmp_path: Path, there: str, dangling: bool) -> None:
    outside = tmp_path / "outside"
    if not dangling:
        outside.write_text("mine")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / there).symlink_to(outside)
    with pytest.raises(BadInput, match="link"):
        write_model(model_of(linear()), tmp_path / "models/a.onnx", force=True, external_above=0)
    assert outside.exists() != dangling
    assert dangling or outside.read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    model = model_of(linear())

    def fails() -> ir.TensorProtocol:
        raise OSError(28, "No space left on device")

    dtype, shape = ir.DataType.FLOAT, ir.Shape([64, 64])
    model.graph.initializers["w"].const_value = ir.LazyTensor(fails, dtype, shape=shape, name="w")
    for above in (0, 1 << 40):
        with pytest.raises(BadInput, match="No space left"):
            write_model(model, tmp_path / "a.onnx", external_above=above)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a folder"):
        write_model(model_of(linear()), tmp_path / "none" / "a.onnx")
    with pytest.raises(BadInput, match="cannot be read"):
        read_model(tmp_path / "none.onnx")


def test_a_model_from_elsewhere_may_have_its_weights_in_files(tmp_path: Path) -> None:
    """As `onnx_ir.load` reads them: by name, when they are needed."""
    path = tmp_path / "a.onnx"
    write_model(model_of(linear()), path, external_above=0)
    model = ir.load(path)
    (file,) = write_model(model, tmp_path / "b.onnx")
    np.testing.assert_array_equal(weight_of(read_model(file)), WEIGHT)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    with pytest.raises(BadInput, match=r"reads .*a\.onnx\.data"):
        write_model(model, path, force=True, external_above=0)
