"""Known holes by the data files of ONNX models: none is read outside the model's folder."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto
from planted.onnx_holes import (
    BRANCH,
    SECRET,
    Holes,
    check_closed,
    entry,
    opened,
    same,
    text_of,
    with_data,
)

from mpcompile.errors import BadInput
from mpcompile.onnx_graph.gate import model_of, read_model

HOLES: Holes = {}


hole = partial(opened, HOLES)


def located(location: str, pattern: str, name: str) -> None:
    def case(model: ModelProto, folder: Path) -> None:
        entry(model, "location", location.replace("OUTSIDE", str(folder.parent / "outside")))

    HOLES[name] = (case, pattern)


OUT = "outside the model's folder"
located("../outside", OUT, "cve_2022_25882_parent_folder")
located("a/../../outside", OUT, "cve_2024_27318_parent_behind_a_folder")
located("weights.bin/../../outside", OUT, "parent_behind_a_file")
located("OUTSIDE", OUT, "absolute_path")
located("//OUTSIDE", OUT, "absolute_path_with_two_slashes")
located("C:\\outside", OUT, "drive_of_windows")
located("..\\outside", OUT, "parent_folder_of_windows")
located("\\\\host\\share\\outside", OUT, "share_of_windows")
located("file://OUTSIDE", "cannot be read", "url")
located("weights.bin\0../outside", "is not a path", "zero_byte_in_a_path")
located("", "is not a path", "empty_path")
located(".", "not a plain file", "the_folder_itself")
located("a" * 5000, "cannot be read", "path_of_5000_characters")
located("*/_ORT_MEM_ADDR_/*", "cannot be read", "address_in_memory_as_onnx_runtime_has_it")
located("/proc/self/mem", OUT, "memory_of_the_process")
located("missing.bin", "cannot be read", "no_such_data_file")


@hole(OUT)
def cve_2026_27489_symbolic_link(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("../outside")


@hole(OUT)
def cve_2026_34447_link_to_a_folder(model: ModelProto, folder: Path) -> None:
    (folder / "sub").symlink_to("..")
    entry(model, "location", "sub/outside")


@hole(OUT)
def link_to_a_link(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "hop").symlink_to("../outside")
    (folder / "weights.bin").symlink_to("hop")


@hole("cannot be read")
def links_in_a_circle(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("weights.bin")


@hole("hard link")
def cve_2026_34446_hard_link(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").hardlink_to(folder.parent / "outside")


@hole("not a plain file")
def pipe(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    os.mkfifo(folder / "weights.bin")


@hole(OUT)
def link_to_a_device(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("/dev/zero")


@hole("not a plain file")
def socket_as_data(model: ModelProto, folder: Path) -> None:
    (folder / "weights.bin").unlink()
    before = Path.cwd()
    os.chdir(folder)  # a socket's path may only be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("weights.bin")
    os.chdir(before)


@hole("an unknown entry")
def cve_2026_34445_unknown_word(model: ModelProto, folder: Path) -> None:
    entry(model, "__class__", "int")


@hole("an entry about its data file twice")
def word_twice(model: ModelProto, folder: Path) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="../outside")


@hole("reads up to byte 16,388")
def offset_past_the_end(model: ModelProto, folder: Path) -> None:
    entry(model, "offset", "4")


@hole("as the offset of its data, which is not a valid number")
def negative_offset(model: ModelProto, folder: Path) -> None:
    entry(model, "offset", "-4")


@hole("as the offset of its data, which is not a valid number")
def offset_of_other_digits(model: ModelProto, folder: Path) -> None:
    entry(model, "offset", "\u0663")


@hole("as the length of its data, which is not a valid number")
def length_beyond_64_bits(model: ModelProto, folder: Path) -> None:
    entry(model, "length", "9" * 30)


@hole("16,380 bytes")
def length_not_that_of_the_shape(model: ModelProto, folder: Path) -> None:
    entry(model, "length", "16380")


@hole("not have the recorded checksum")
def data_exchanged(model: ModelProto, folder: Path) -> None:
    entry(model, "checksum", "0" * 40)


@hole("not the file that the model was written with")
def data_exchanged_by_sha_256(model: ModelProto, folder: Path) -> None:
    model.metadata_props.add(key="mpcompile.sha256", value="0" * 64 + " weights.bin")


@hole(OUT)
def digest_of_a_file_outside(model: ModelProto, folder: Path) -> None:
    model.metadata_props.add(key="mpcompile.sha256", value="0" * 64 + " ../outside")


@hole("both in this file and in another")
def data_in_two_places(model: ModelProto, folder: Path) -> None:
    model.graph.initializer[0].raw_data = SECRET


@hole("sparse")
def sparse_weights_with_data_outside(model: ModelProto, folder: Path) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(model.graph.initializer[0])
    sparse.values.external_data[0].value = "../outside"


@hole("sparse")
def sparse_constant_with_data_outside(model: ModelProto, folder: Path) -> None:
    node = model.graph.node.add(op_type="Constant", output=["spare"])
    held = node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    held.sparse_tensor.values.CopyFrom(model.graph.initializer[0])


@hole(OUT)
def constant_with_data_outside(model: ModelProto, folder: Path) -> None:
    node = model.graph.node.add(op_type="Constant", output=["spare"])
    held = node.attribute.add(name="value", type=AttributeProto.TENSOR)
    held.t.CopyFrom(model.graph.initializer[0])
    held.t.external_data[0].value = "../outside"


@hole(OUT)
def data_outside_in_a_branch(model: ModelProto, folder: Path) -> None:
    same_weight = TensorProto()
    same_weight.CopyFrom(model.graph.initializer[0])
    same_weight.name, same_weight.external_data[0].value = "inner", "../outside"
    same(model, text_of(BRANCH))
    model.graph.node[0].attribute[0].g.initializer.append(same_weight)


@hole("training_info")
def data_outside_in_a_training_graph(model: ModelProto, folder: Path) -> None:
    graph = model.training_info.add().algorithm
    graph.initializer.append(model.graph.initializer[0])
    graph.initializer[0].external_data[0].value = "../outside"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("name", HOLES)
def test_a_known_hole_is_closed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, pattern = HOLES[name]
    check_closed(case, pattern, tmp_path, capsys)


def test_the_model_without_a_hole_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    model = with_data(tmp_path / "sub")
    (tmp_path / "weights.bin").symlink_to("sub/weights.bin")  # stays in the folder
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    held = read_model(tmp_path / "model.onnx").graph.initializers["w"].const_value
    assert held is not None
    np.testing.assert_array_equal(held.numpy(), np.eye(64))


def test_a_model_in_memory_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not read from a folder"):
        model_of(with_data(tmp_path))
