"""Tensors with data in another file beside the model, and in no other folder.

A file is opened once, through no link, and the opened file is the one that is checked. Its bytes
are mapped, not read, so weights may be larger than memory. They stay readable if the file is
renamed or replaced.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from mpcompile.errors import BadInput
from mpcompile.onnx_graph.tensor_checks import bytes_of
from mpcompile.validation import short

_KEYS = {"location", "offset", "length", "checksum", "basepath"}
"""Keys that ONNX defines; the base path, of the machine that wrote the file, is ignored."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_PIECE = 1 << 22
_TOGETHER = "put the model and its data into one folder, as files of their own"


DIGEST_KEY = "mpcompile.sha256"
"""The model's property that holds the SHA-256 of its data file, and that file's name."""


@dataclass(frozen=True, slots=True)
class _Mapped:
    size: int
    data: mmap.mmap | None

    def digest(self, algorithm: str) -> str:
        found = hashlib.new(algorithm, usedforsecurity=False)
        for start in range(0, self.size, _PIECE):
            if self.data is not None:
                found.update(self.data[start : start + _PIECE])
        return found.hexdigest()


def sha256_of(file: Path) -> str:
    """Return a model's record of its data file: the SHA-256 and the name."""
    with file.open("rb") as opened:
        return f"{hashlib.file_digest(opened, 'sha256').hexdigest()} {file.name}"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A model's folder, which may hold its data files.

    Attributes:
        folder: the model's folder; None refuses every data file.
        where: the model's file, for messages.
    """

    folder: Path | None
    where: str | None
    _files: dict[str, _Mapped] = field(default_factory=dict)

    def check(self, tensor: TensorProto, name: str) -> None:
        """Raise BadInput if a tensor's data is not all in a file of its own in the folder.

        Args:
            tensor: a tensor of a checked dtype and shape, with its data in another file.
            name: its name in messages.
        """
        entries = self._entries(tensor, name)
        file = self._file(entries["location"], name)
        size = bytes_of(tensor)
        start = self._number(entries, "offset", name, 0)
        length = self._number(entries, "length", name, size)
        if length != size:
            shape = short(list(tensor.dims))
            raise self._refused(
                f"{name} has {length:,} bytes, but its shape {shape} needs {size:,}"
            )
        if start + length > file.size:
            end = f"byte {start + length:,} of {short(entries['location'])}"
            raise self._refused(f"{name} reads up to {end}, but the file has {file.size:,} bytes")
        if "checksum" in entries and file.digest("sha1") != entries["checksum"].lower():
            raise self._refused(f"{short(entries['location'])} does not have the recorded checksum")

    def check_file(self, location: str, name: str) -> None:
        """Raise BadInput if a file is not one of its own in the folder.

        Args:
            location: its path from the folder.
            name: the name in messages of the tensor or record that refers to it.
        """
        self._file(location, name)

    def tensor(self, external: ir.ExternalTensor) -> ir.TensorProtocol:
        """Return a tensor whose numbers are read from its data file when they are needed.

        Args:
            external: made from a tensor that `check` has accepted.
        """
        file = self._file(str(external.location), f"tensor {short(external.name)}")
        dtype = external.dtype
        stored = np.dtype(np.uint8 if dtype.bitwidth < 8 else dtype.numpy()).newbyteorder("<")
        count = external.nbytes // stored.itemsize
        array = np.empty(0, stored)
        if file.data is not None and count:
            array = np.frombuffer(file.data, stored, count, external.offset or 0)
        array.flags.writeable = False
        about: dict[str, Any] = {
            "name": external.name,
            "doc_string": external.doc_string,
            "metadata_props": external.metadata_props,
        }
        if dtype.bitwidth < 8:
            return ir.PackedTensor(array, dtype, shape=external.shape, **about)
        whole = array.reshape(external.shape.numpy())
        return ir.Tensor(whole, dtype, shape=external.shape, **about)

    def check_digest(self, recorded: str) -> None:
        """Raise BadInput if a data file is not the one that the model was written with.

        Args:
            recorded: the file's SHA-256 and its name, as `sha256_of` gives them.
        """
        digest, _, location = recorded.partition(" ")
        if self._file(location, "the model").digest("sha256") != digest:
            what = f"{short(location)} is not the file that the model was written with"
            advice = f"fetch both again, or remove the property {DIGEST_KEY} if a tool changed them"
            raise BadInput(what, self.where, advice)

    def _entries(self, proto: TensorProto, name: str) -> dict[str, str]:
        if len(proto.external_data) > len(_KEYS):
            raise self._refused(f"{name} has too many entries about its data file")
        entries = {entry.key: entry.value for entry in proto.external_data}
        unknown = sorted(entries.keys() - _KEYS)
        if unknown:
            raise self._refused(
                f"{name} has an unknown entry about its data file, {short(unknown[0])}"
            )
        if len(entries) < len(proto.external_data):
            raise self._refused(f"{name} has an entry about its data file twice")
        if "location" not in entries:
            raise self._refused(f"{name} does not name its data file")
        return entries

    def _number(self, entries: dict[str, str], key: str, name: str, default: int) -> int:
        if key not in entries:
            return default
        if not _NUMBER.fullmatch(entries[key]):
            raise self._refused(
                f"{name} gives {short(entries[key])} as the {key} of its data, which is not a "
                "valid number"
            )
        return int(entries[key])

    def _file(self, location: str, name: str) -> _Mapped:
        if self.folder is None:
            raise self._refused(
                f"{name} has its data in another file, but the model was not read from a folder"
            )
        if location not in self._files:
            for form in (PurePosixPath(location), PureWindowsPath(location)):
                if form.is_absolute() or form.drive or form.root or ".." in form.parts:
                    raise self._outside(location, name)
            if not location or "\0" in location or "\\" in location:
                raise self._refused(
                    f"{name} names the data file {short(location)}, which is not a path"
                )
            try:
                self._files[location] = self._map(location, name)
            except (OSError, RuntimeError) as error:  # resolve() raises it for circular links
                reason = getattr(error, "strerror", None) or "its links form a circle"
                what = f"the data file {short(location)} of {name} cannot be read ({reason})"
                raise BadInput(what, self.where, _TOGETHER) from error
        return self._files[location]

    def _map(self, location: str, name: str) -> _Mapped:
        assert self.folder is not None
        folder = self.folder.resolve(strict=True)
        real = (folder / location).resolve(strict=True)
        if not real.is_relative_to(folder):
            raise self._outside(location, name)
        if not stat.S_ISREG(real.lstat().st_mode):
            raise self._refused(f"{short(location)} of {name} is not a plain file")
        opened = _open(folder, real.relative_to(folder).parts)
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode):
                raise self._refused(f"{short(location)} of {name} is not a plain file")
            if found.st_nlink > 1:
                what = (
                    f"{short(location)} of {name} is a hard link to a file that also has "
                    "another name"
                )
                raise BadInput(what, self.where, _TOGETHER)
            size = found.st_size
            data = mmap.mmap(opened, size, access=mmap.ACCESS_READ) if size else None
            return _Mapped(size, data)
        finally:
            os.close(opened)

    def _outside(self, location: str, name: str) -> BadInput:
        what = f"{name} has its data in {short(location)}, outside the model's folder"
        return BadInput(what, self.where, _TOGETHER)

    def _refused(self, what: str) -> BadInput:
        return BadInput(what, self.where, "export the model again")


def _open(folder: Path, parts: Iterable[str]) -> int:
    """Open a file below a folder for reading, through no link and without waiting."""
    how = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if os.open not in os.supports_dir_fd:
        return os.open(folder.joinpath(*parts), how)
    *between, last = parts
    place = os.open(folder, how | os.O_DIRECTORY)
    for part in between:
        try:
            inner = os.open(part, how | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
        finally:
            os.close(place)
        place = inner
    try:
        return os.open(last, how | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)
