"""The bench of real ONNX files: its inputs, its outcomes and its table, without the files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench.onnx.real_data import batches, known, speech, text_image
from bench.onnx.real_files import PACKAGES, Task, convert, table

NAME = "nudenet/320n.onnx"
NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,320,320] images) => (float[1,4,160,160] y) <float[4,3,2,2] w> {
   y = Conv <strides = [2, 2]> (images, w)
}"""


def net(folder: Path) -> Path:
    model = onnx.parser.parse_model(NET)
    del model.graph.value_info[:]
    weight = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    file = folder / "320n.onnx"
    onnx.save(model, file)
    return file


def test_the_files_are_24_of_the_packages() -> None:
    assert len(known()) == 24
    assert {name.partition("/")[0] for name in known()} == set(PACKAGES)


def test_inputs_are_the_same_each_time_and_differ_among_themselves(tmp_path: Path) -> None:
    file = net(tmp_path)
    one, other = batches(NAME, file), batches(NAME, file)
    assert all(np.array_equal(a["images"], b["images"]) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0]["images"], one[1]["images"])
    sound = speech(0.5, 0)
    assert sound.shape == (8000,)
    assert 0.2 < np.abs(sound).max() < 1
    page = text_image("a line", 48, 320)
    assert page.shape == (48, 320, 3)
    assert page.min() < 60
    assert page.max() > 230


@pytest.mark.parametrize("tool", ["ours", "onnxconverter-common"])
def test_a_file_is_converted_and_run(tmp_path: Path, tool: str) -> None:
    found = convert(Task(NAME, str(net(tmp_path)), tool, str(tmp_path)))
    assert found.what == "within"
    assert found.error is not None
    assert 0 < found.error < 2**-6


def test_a_tool_that_is_not_there_is_said(tmp_path: Path) -> None:
    found = convert(Task(NAME, str(net(tmp_path)), "ModelOpt", str(tmp_path)))
    assert found.what == "not installed"


def test_the_table_has_a_row_a_file_and_counts(tmp_path: Path) -> None:
    outcome = asdict(convert(Task(NAME, str(net(tmp_path)), "ours", str(tmp_path))))
    rows = table([{"file": NAME, "outcomes": {"ours": outcome}}], ["ours"]).splitlines()
    assert rows[0] == "| file | ours |"
    assert rows[2].startswith(f"| {NAME} | within, ")
    assert rows[-1] == "| **right** | **1 of 1** |"
