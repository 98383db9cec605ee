"""The one gate in front of every ONNX file that is read or written.

A file is untrusted data. A file that is no well-formed model is refused in one sentence, before
memory is allocated for the contents that it claims to have.
"""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from mpcompile.artifacts import check_file
from mpcompile.errors import BadInput
from mpcompile.onnx_graph.external_data import DIGEST_KEY, DataFolder, sha256_of
from mpcompile.onnx_graph.graph_checks import check_model
from mpcompile.onnx_graph.tensor_checks import OPEN
from mpcompile.onnx_graph.wire import check_texts, check_wire
from mpcompile.validation import short

LARGEST_FILE = (1 << 31) - 1
"""Bytes of a model without its data files: the limit of Protocol Buffers."""
EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they go into a data file."""
OPENED = "mpcompile.opened"
"""Key in a model's ``meta``: the names of values of which the file gives a dimension as -1."""
_EACH_ABOVE = 1024
"""Bytes of a tensor up to which it stays in the model; graphs read small ones as shapes."""


def read_model(path: Path) -> ir.Model:
    """Read a model from an untrusted file.

    Weights in data files beside it are mapped into memory, not read.

    Raises:
        BadInput: there is no such file, or it is no well-formed model, or its data files are not
            plain files in its folder.
    """
    where = str(path)
    try:
        with _opened(path) as data:
            check_wire(data, where)
            proto = onnx.ModelProto.FromString(data[:])
    except OSError as error:
        raise BadInput(f"the file cannot be read ({error.strerror})", where) from error
    except MemoryError as error:
        raise _too_large(where) from error
    except (DecodeError, RecursionError) as error:
        raise BadInput(
            "this is not an ONNX file", where, "give a file that ONNX can read"
        ) from error
    return _checked(proto, where, path.parent)


def model_of(
    proto: onnx.ModelProto, where: str | None = None, folder: Path | None = None
) -> ir.Model:
    """Check an untrusted model in memory and return it; the argument is not changed.

    Args:
        proto: the model.
        where: its name in messages.
        folder: the folder of its data files; None refuses data files.

    Raises:
        BadInput: see `read_model`.
    """
    check_texts(proto, where)
    return _checked(proto, where, folder)


def _checked(proto: onnx.ModelProto, where: str | None, folder: Path | None) -> ir.Model:
    try:
        data = DataFolder(folder, where)
        check_model(proto, data, where)
        model = _built(proto, where)
        _open_dimensions(model)
        _map_external(model, data)
    except MemoryError as error:
        raise _too_large(where) from error
    return model


def write_model(
    model: ir.Model, path: Path, force: bool = False, external_above: int = EXTERNAL_ABOVE
) -> list[Path]:
    """Write a model to a file that appears under its name only when it is complete.

    The model is not changed, and stays readable if it was read from the replaced file. No link is
    followed.

    Args:
        model: its weights may be computed, or read from files, as they are written.
        path: the file.
        force: whether existing files may be replaced.
        external_above: bytes of weights above which they are stored in ``NAME.data`` beside the
            file, whose SHA-256 the model then records; 0 always stores them there.

    Returns:
        The files: the model, then its data file if it has one.

    Raises:
        BadInput: a file exists already, or cannot be written.
    """
    held = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in held]
    properties = dict(model.metadata_props)
    total = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    data = path.with_name(f"{path.name}.data") if total > external_above else None
    for file in (path, data):
        if file is not None:
            _check_free(file, force, model)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
            fresh = [Path(place) / file.name for file in (path, data) if file is not None]
            model.metadata_props.pop(DIGEST_KEY, None)
            _inline(held, _EACH_ABOVE if data is not None else total)
            if data is not None:
                _unload(model, fresh[1])
            fresh[0].write_bytes(_serialized(model, str(path)))
            written = [file for file in fresh if file.is_file()]
            for file in reversed(written):
                file.replace(path.with_name(file.name))
            return [path.with_name(file.name) for file in written]
    except OSError as error:
        what = f"the model cannot be written ({error.strerror})"
        raise BadInput(what, str(path), "choose another file") from error
    except MemoryError as error:
        raise _too_large(str(path)) from error
    finally:
        for value, tensor in zip(held, tensors, strict=True):
            value.const_value = tensor
        model.metadata_props.clear()
        model.metadata_props.update(properties)


@contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    """Yield the bytes of a plain file that is not too large, mapped and not read."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a device can have side effects
        raise BadInput("this is not a plain file", str(path), "give the path of an ONNX file")
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise BadInput("this is not a plain file", str(path), "give the path of an ONNX file")
        if found.st_size > LARGEST_FILE:
            raise _too_large(str(path))
        if not found.st_size:
            raise BadInput("the file is empty", str(path), "give the path of an ONNX file")
        with mmap.mmap(opened, found.st_size, access=mmap.ACCESS_READ) as data:
            yield data
    finally:
        os.close(opened)


def _built(proto: onnx.ModelProto, where: str | None) -> ir.Model:
    """Return a checked model as onnx_ir's type; refuse what that library refuses."""
    try:
        return ir.from_proto(proto)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        cause = _first_cause(error)
        if isinstance(cause, MemoryError):
            raise cause from error
        what = f"this is not a well-formed model ({short(str(cause))})"
        raise BadInput(what, where, "export the model again") from error


def _open_dimensions(model: ir.Model) -> None:
    """Leave dimensions open that the file calls -1, and note their values in the model's ``meta``.

    ONNX's inference would take -1 for a size that contradicts what it infers.
    """
    opened: dict[str, None] = {}
    for graph in model.graphs():
        made = [value for node in graph for value in node.outputs]
        for value in dict.fromkeys((*graph.inputs, *made, *graph.outputs)):
            shape = value.shape
            if shape is not None and any(size == OPEN for size in shape):
                value.shape = ir.Shape(None if size == OPEN else size for size in shape)
                opened[str(value.name)] = None
    if opened:
        model.meta[OPENED] = tuple(opened)


def _map_external(model: ir.Model, data: DataFolder) -> None:
    """Make each tensor with external data read it from its checked data file only."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = data.tensor(value.const_value)
    for node in _all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            if _is_external(attribute):
                node.attributes[name] = ir.AttrTensor(name, data.tensor(attribute.value))
    digest = model.metadata_props.get(DIGEST_KEY)
    if digest is not None:
        data.check_digest(digest)


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _is_external(attribute: ir.Attr) -> bool:
    return not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor)


def _check_free(file: Path, force: bool, model: ir.Model) -> None:
    """Raise BadInput if a file may not be replaced, or the model still reads it."""
    check_file(file, force)
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise BadInput(f"{file} is a link or not a plain file", fix="choose another file")
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and _same_file(tensor.path, file):
                raise BadInput(
                    f"the model reads its weights from {file}", fix="choose another file"
                )


def _same_file(one: str, other: Path) -> bool:
    return Path(one).resolve() == other.resolve()


def _inline(values: list[ir.Value], largest: int) -> None:
    """Load the weights of at most `largest` bytes from data files into memory."""
    for value in values:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= largest:
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _unload(model: ir.Model, file: Path) -> None:
    """Write a model's larger weights into a file, one by one, and make it refer to the file."""
    ir.external_data.unload_from_model(
        model, file.parent, file.name, size_threshold_bytes=_EACH_ABOVE
    )
    if file.is_file() and not file.stat().st_size:  # all weights are small and stay in the model
        file.unlink()
    elif file.is_file():
        model.metadata_props[DIGEST_KEY] = sha256_of(file)


def _serialized(model: ir.Model, where: str | None) -> bytes:
    for node in _all_nodes(model):
        for attribute in node.attributes.values():
            if _is_external(attribute):
                what = (
                    f"the node {short(node.name)} has the numbers of an attribute in another file"
                )
                raise BadInput(what, where, "read the model with mpcompile.onnx")
    try:
        encoded: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    except (EncodeError, ir.serde.SerdeError, ValueError) as error:
        cause = _first_cause(error)
        if not isinstance(cause, EncodeError | ValueError):
            raise cause from error
        what = f"the model takes over {LARGEST_FILE:,} bytes without its weights"
        raise BadInput(what, where, "store its constants as weights") from error
    return encoded


def _first_cause(error: BaseException) -> BaseException:
    """Return the first error; onnx_ir wraps it once per part of the model."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _too_large(where: str | None) -> BadInput:
    return BadInput(
        "the model is too large to be read into memory",
        where,
        "store its weights in a separate data file",
    )
