"""Batches from a .npz file: arrays are read back, and arrays that do not fit are refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpcompile.errors import BadInput
from mpcompile.onnx.batches import Inputs, read_batches

FLOAT, LONG = np.dtype(np.float32), np.dtype(np.int64)
INPUTS: Inputs = {"x": (FLOAT, (2, None)), "y": (LONG, ())}


def member(array: np.ndarray, claimed: tuple[int, ...] | None = None) -> bytes:
    """Return an array as a member of an archive, perhaps with another shape in its header."""
    file = io.BytesIO()
    head = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, {**head, "shape": claimed or array.shape})
    return file.getvalue() + array.tobytes()


def archive(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@given(
    x=hnp.arrays(
        FLOAT, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4).map(lambda s: (3, *s))
    ),
    swapped=st.booleans(),
    column_major=st.booleans(),
    compressed=st.booleans(),
)
def test_batches_are_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    x: np.ndarray,
    swapped: bool,
    column_major: bool,
    compressed: bool,
) -> None:
    path = tmp_path_factory.mktemp("batches") / "batches.npz"
    stored = np.asarray(x.astype(">f4") if swapped else x, order="F" if column_major else "C")
    save = np.savez_compressed if compressed else np.savez
    save(path, x=stored, y=np.arange(3))
    inputs: Inputs = {"x": (FLOAT, (None, x.shape[2])), "y": (LONG, ())}
    found = list(read_batches(path, inputs))
    assert [int(batch["y"]) for batch in found] == [0, 1, 2]
    for batch, expected in zip(found, x, strict=True):
        assert batch["x"].dtype == FLOAT
        assert batch["x"].flags.c_contiguous
        np.testing.assert_array_equal(batch["x"], expected)


def test_one_batch_has_the_shape_of_the_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((2, 5), np.float32), y=np.int64(7))
    (batch,) = read_batches(tmp_path / "one.npz", INPUTS)
    assert batch["x"].shape == (2, 5)
    assert batch["y"].shape == ()


def test_an_array_without_a_batch_axis_is_in_every_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", x=np.ones((2, 5), np.float32), y=np.arange(3))
    batches = list(read_batches(tmp_path / "some.npz", INPUTS))
    assert [int(batch["y"]) for batch in batches] == [0, 1, 2]
    assert all(batch["x"].shape == (2, 5) for batch in batches)


def test_bfloat16_is_read_back(tmp_path: Path) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16)
    x = np.arange(6).reshape(2, 3).astype(dtype)
    np.savez(tmp_path / "b.npz", x=x)
    batches = list(read_batches(tmp_path / "b.npz", {"x": (dtype, (3,))}))
    assert [batch["x"].tolist() for batch in batches] == x.tolist()


def test_a_decompression_bomb_takes_no_memory(tmp_path: Path) -> None:
    """One gigabyte of zeros in a megabyte, in batches of a kilobyte: the first takes a kilobyte."""
    path = tmp_path / "bomb.npz"
    head = member(np.empty(0, np.float32), (1 << 20, 256))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w") as to:
        to.write(head)
        for _ in range(256):
            to.write(bytes(1 << 22))
    first = next(read_batches(path, {"x": (FLOAT, (256,))}))
    assert not first["x"].any()


class Runs:
    """Raises its own error if it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return RuntimeError, ("it ran",)


ONE = member(np.ones((2, 3), np.float32))
NUMBER = member(np.ones((), np.int64))
BAD = {
    "missing": ({"x.npy": ONE}, "'y' is missing"),
    "unknown": ({"x.npy": ONE, "y.npy": NUMBER, "z.npy": ONE}, "no input 'z'"),
    "near": ({"xx.npy": ONE, "y.npy": NUMBER}, "did you mean 'x'"),
    "dtype": ({"x.npy": member(np.ones((2, 3))), "y.npy": NUMBER}, "float64.*float32"),
    "shape": ({"x.npy": member(np.ones((3, 3), np.float32)), "y.npy": NUMBER}, r"\[2, \?\]"),
    "rank": ({"x.npy": member(np.ones(3, np.float32)), "y.npy": NUMBER}, r"\[3\]"),
    "counts": (
        {"x.npy": member(np.ones((3, 2, 3), np.float32)), "y.npy": member(np.ones(4, np.int64))},
        "3 batches.* 4",
    ),
    "none": (
        {"x.npy": member(np.ones((0, 2, 3), np.float32)), "y.npy": member(np.ones(0, np.int64))},
        "no batches",
    ),
    "short": ({"x.npy": ONE[:-4], "y.npy": NUMBER}, "too few"),
    "long": ({"x.npy": ONE + b"more", "y.npy": NUMBER}, "too few or many"),
    "claims": ({"x.npy": member(np.ones(2, np.float32), (2, 1 << 60)), "y.npy": NUMBER}, "over"),
    "negative": ({"x.npy": member(np.ones(2, np.float32), (2, -1)), "y.npy": NUMBER}, "over"),
    "objects": (
        {"x.npy": member(np.array([[Runs()]], object)) + pickle.dumps(Runs()), "y.npy": NUMBER},
        "Python objects",
    ),
    "pickle": ({"x.npy": pickle.dumps(Runs()), "y.npy": NUMBER}, "not an array"),
    "garbage": (
        {"x.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "y.npy": NUMBER},
        "no.* array",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    members, pattern = BAD[name]
    with pytest.raises(BadInput, match=pattern):
        read_batches(archive(tmp_path / "bad.npz", members), INPUTS)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadInput, match=r"not a \.npz file"):
        read_batches(tmp_path / "text.npz", INPUTS)
    with pytest.raises(BadInput, match="no such file"):
        read_batches(tmp_path / "none.npz", INPUTS)
    lzma = archive(tmp_path / "lzma.npz", {"x.npy": ONE, "y.npy": NUMBER}, zipfile.ZIP_LZMA)
    with pytest.raises(BadInput, match="an unknown way"):
        read_batches(lzma, INPUTS)
    with (
        zipfile.ZipFile(tmp_path / "twice.npz", "w") as file,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        file.writestr("x.npy", ONE)
        file.writestr("x.npy", ONE)
    with pytest.raises(BadInput, match="twice"):
        read_batches(tmp_path / "twice.npz", INPUTS)


@given(offset=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_is_detected_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, offset: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("batches") / "flipped.npz"
    members = {"x.npy": ONE, "y.npy": NUMBER}
    data = bytearray(archive(path, members, zipfile.ZIP_DEFLATED).read_bytes())
    data[offset % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        (batch,) = read_batches(path, INPUTS)
    except BadInput:
        return
    assert batch["x"].tolist() == [[1.0] * 3] * 2
    assert int(batch["y"]) == 1
