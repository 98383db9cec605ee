"""Malformed ONNX models that refer to weights in other files."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from onnx import ModelProto, TensorProto

from bench.robustness.malformed_parts import kind, save
from bench.robustness.malformed_seeds import seeds


@kind
def _location(random: Random, folder: Path) -> None:
    """Write paths that lead out of the folder, or are no paths."""
    outside = str(folder.parent / "outside")
    location = random.choice(
        (
            "../outside",
            "./../outside",
            "a/../../outside",
            "weights.bin/../../outside",
            "..",
            ".",
            "",
            "/",
            outside,
            "//" + outside,
            "/proc/self/mem",
            "/dev/zero",
            "C:\\outside",
            "..\\outside",
            "\\\\host\\share",
            "file://" + outside,
            "weights.bin\0../outside",
            "a" * 5000,
            "missing",
            "weights.bin/",
            "*/_ORT_MEM_ADDR_/*",
            "~/outside",
            "$HOME/outside",
        )
    )
    _external(folder, {"location": location})


@kind
def _links(random: Random, folder: Path) -> None:
    """Make links that lead out of the folder, circular links, or hard links."""
    outside = folder.parent / "outside"
    way = random.randrange(6)
    _external(folder, {"location": "sub/weights.bin" if way in (2, 3) else "weights.bin"})
    file = folder / "weights.bin"
    file.unlink()
    if way == 0:
        file.symlink_to(outside)
    elif way == 1:
        file.hardlink_to(outside)
    elif way == 2:
        (folder.parent / "weights.bin").write_bytes(outside.read_bytes())
        (folder / "sub").symlink_to("..")
    elif way == 3:
        (folder / "sub").symlink_to("sub")
    elif way == 4:
        (folder / "hop").symlink_to("../outside")
        file.symlink_to("hop")
    else:
        file.symlink_to("/dev/zero")


@kind
def _no_plain_file(random: Random, folder: Path) -> None:
    """Make pipes, folders, sockets; also in place of the model."""
    _external(folder, {"location": "weights.bin"})
    file = folder / random.choice(("weights.bin", "weights.bin", "model.onnx"))
    file.unlink()
    way = random.randrange(4)
    if way == 0:
        os.mkfifo(file)
    elif way == 1:
        file.mkdir()
    elif way == 2:
        file.symlink_to("/dev/zero" if file.name == "weights.bin" else "/dev/urandom")
    else:
        file.symlink_to(file.name)


@kind
def _offsets(random: Random, folder: Path) -> None:
    """Write offsets and lengths past the end, negative, or no numbers; unknown, repeated keys."""
    texts = ("-1", "1", "16380", "999999999", str(1 << 63), "1e3", "0x10", "", " 0", "٣", "1_000")
    way = random.randrange(5)
    entries = {"location": "weights.bin", "offset": "0", "length": "16384"}
    if way < 3:
        entries[random.choice(("offset", "length"))] = random.choice(texts)
    elif way == 3:
        entries[random.choice(("__class__", "shape", "raw_data", ""))] = "x"
    else:
        entries["checksum"] = random.choice(("", "0" * 40, "x" * 5000))
    _external(folder, entries, twice=random.random() < 0.2)


@kind
def _short_data(random: Random, folder: Path) -> None:
    """Write a data file that ends early, is empty, or holds texts."""
    _external(folder, {"location": "weights.bin"}, random.choice((1, 1, 8, 9, 7, 22, 27, 0, 99)))
    size = random.choice((0, 1, 16383, 16384, 20000))
    (folder / "weights.bin").write_bytes(bytes(size))


def _external(
    folder: Path, entries: dict[str, str], dtype: int = TensorProto.FLOAT, twice: bool = False
) -> None:
    """Write a model with weights of 64 times 64 numbers in another file."""
    model = ModelProto()
    model.CopyFrom(seeds()["wide"])
    (tensor,) = model.graph.initializer
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_type = dtype
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (*entries.items(), *list(entries.items())[: int(twice)]):
        tensor.external_data.add(key=key, value=value)
    save(model, folder)
