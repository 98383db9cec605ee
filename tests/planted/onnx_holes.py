"""Known security holes in the handling of ONNX files, and the check that each is closed.

The numbers in names are those under which a hole of this kind was published, in any library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from mpcompile.cli import exit_code
from mpcompile.errors import BadInput
from mpcompile.onnx.rewrite import rewrite

SECRET = b"\x07" * 16384
Hole = Callable[[ModelProto, Path], None]
Holes = dict[str, tuple[Hole, str]]

BRANCH = """g (float[2] x, bool k) => (float[2] y) { y = If(k) <
    then_branch = t () => (float[2] a) { a = Relu(x) },
    else_branch = e () => (float[2] b) { b = Exp(x) } > }"""


def opened(holes: Holes, pattern: str) -> Callable[[Hole], Hole]:
    """Register a case: its change of a model with a data file, and the expected message."""

    def register(function: Hole) -> Hole:
        holes[function.__name__] = (function, pattern)
        return function

    return register


def entry(model: ModelProto, key: str, value: str) -> None:
    """Set an entry about the data file of the model's only weight."""
    entries = model.graph.initializer[0].external_data
    for found in entries:
        if found.key == key:
            found.value = value
            return
    entries.add(key=key, value=value)


def text_of(rest: str) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "f": 1]> {rest}')


def same(model: ModelProto, other: ModelProto) -> None:
    model.CopyFrom(other)


def with_data(folder: Path) -> ModelProto:
    """Write a data file into a folder, and return a model with its weight in that file."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2, 64] x) => (float[2, 64] y) { y = MatMul(x, w) }
    """)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0
    )
    (folder / "weights.bin").write_bytes(model.graph.initializer[0].raw_data)
    model.graph.initializer[0].ClearField("raw_data")
    return model


def check_closed(case: Hole, pattern: str, place: Path, said: pytest.CaptureFixture[str]) -> None:
    """Make a model with a hole; it must be refused in one sentence and leave no file behind."""
    (place / "outside").write_bytes(SECRET)
    folder = place / "model"
    folder.mkdir()
    model, file = with_data(folder), folder / "model.onnx"
    case(model, folder)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=pattern) as refused:
        rewrite(file)
    assert refused.value.where == str(file)
    assert exit_code([str(file), "-o", str(place / "out.onnx")]) == 2
    assert said.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == ["model", "outside"]
