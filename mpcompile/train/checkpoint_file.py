"""A checkpoint as a folder: written whole or not at all, and read only if every byte is right.

A folder gets its name when all its files are on the disk: the state as safetensors, the rest as
JSON, and last a manifest with the size and SHA-256 of each file. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mpcompile.artifacts import flush
from mpcompile.errors import BadInput
from mpcompile.plan.plan import Plan
from mpcompile.step.loss_scale import LossScale
from mpcompile.validation import format_of, sentence, without_head

STATE, CHECKPOINT, PLAN, MANIFEST = (
    "state.safetensors",
    "checkpoint.json",
    "plan.json",
    "manifest.json",
)
VERSION = 1
_ADVICE = "load another checkpoint"
_ELSEWHERE = "save to another folder"
_LARGEST_JSON = 1 << 28
_LARGEST_MANIFEST = 1 << 12
_STRICT = ConfigDict(extra="forbid", strict=True)

_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Name = Annotated[str, Field(max_length=256)]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The state that each process of a run has of its own.

    Attributes:
        random: the state of the random generators, packed by `mpcompile.train.state_tree`.
        also: the states of other objects by name, packed too.
    """

    random: Any
    also: dict[_Name, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The contents of a checkpoint beside tensors and plan.

    Attributes:
        steps: the number of steps taken and skipped so far.
        torch: the version of torch of the run.
        optimizer: the optimizer's class.
        loss_scale: the rule; the scale itself is a tensor.
        groups: the options of each parameter group, packed by `mpcompile.train.state_tree`.
        random: the state of the random generators, packed too.
        also: the states of other objects by name, packed too.
        others: in a run on many processes, the own states of all processes but the first.
    """

    steps: _Count
    torch: _Name
    optimizer: _Name
    loss_scale: LossScale
    groups: tuple[dict[_Name, Any], ...]
    random: Any
    also: dict[_Name, Any]
    others: tuple[ProcessState, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckpointFile(Checkpoint):
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: Literal[1]


@dataclass(frozen=True, slots=True)
class _Sum:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    bytes: _Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class _Manifest:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: Literal[1]
    files: dict[Literal["state.safetensors", "checkpoint.json", "plan.json"], _Sum]


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose bytes are all as they were written.

    Attributes:
        folder: the checkpoint's folder.
        checkpoint: its contents beside tensors and plan.
        plan: the plan of the training.
    """

    folder: Path
    checkpoint: Checkpoint
    plan: Plan

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read the checkpoint's tensors into the memory of the CPU.

        Raises:
            BadInput: the file is not a safetensors file.
        """
        path = self.folder / STATE
        try:
            with safe_open(path, "pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, MemoryError, AttributeError) as error:
            what = f"this is not a safetensors file ({' '.join(str(error).split())[:200]})"
            raise BadInput(what, str(path), _ADVICE) from error


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, plan: Plan, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a checkpoint; `folder` appears when all its files are on the disk.

    Args:
        folder: its parent is made. If the folder exists, it must hold the same checkpoint.
        checkpoint: the contents beside tensors and plan.
        plan: the plan.
        tensors: tensors on any device; they are copied.

    Raises:
        BadInput: the checkpoint cannot be written, or the folder holds something else; then no file
            is left behind.
    """
    parent = folder.parent
    fresh = None
    try:
        if not parent.is_dir():
            parent.mkdir(parents=True)
            flush(parent.parent)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
        fresh.chmod(0o755)
        # Copies, because safetensors refuses views that share memory, such as those of an arena.
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
        save_file(copies, fresh / STATE)
        head = {"version": VERSION}
        (fresh / CHECKPOINT).write_bytes(_json({**head, **asdict(checkpoint)}))
        (fresh / PLAN).write_bytes(f"{plan.to_json()}\n".encode())
        sums = {}
        for name in (STATE, CHECKPOINT, PLAN):
            (fresh / name).chmod(0o644)  # safetensors lets only the owner read its file
            flush(fresh / name)
            sums[name] = asdict(_sum(fresh / name))
        (fresh / MANIFEST).write_bytes(_json({**head, "files": sums}))
        flush(fresh / MANIFEST)
        flush(fresh)
        if folder.exists():
            _check_same(folder, fresh)
            shutil.rmtree(fresh)
        else:
            fresh.replace(folder)
        flush(parent)
    except BaseException as error:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            reason = getattr(error, "strerror", None) or error
            raise BadInput(
                f"the checkpoint cannot be written ({reason})", str(folder), _ELSEWHERE
            ) from error
        raise


def read_checkpoint(folder: Path, largest: int) -> Opened:
    """Read a checkpoint from an untrusted source, and check every byte before it is used.

    No file outside the folder is opened, because no file name is read from the checkpoint.

    Args:
        folder: the checkpoint's folder.
        largest: most bytes that the state may have.

    Raises:
        BadInput: the checkpoint is not complete, or differs from what was written.
    """
    text = _read(folder / MANIFEST, _LARGEST_MANIFEST)
    manifest = _parse(format_of(_Manifest), text, folder / MANIFEST, "the manifest of a checkpoint")
    texts = {}
    for name in (STATE, CHECKPOINT, PLAN):
        path = folder / name
        if name not in manifest.files:
            raise BadInput(f"the manifest does not list {name}", str(folder / MANIFEST), _ADVICE)
        wanted = manifest.files[name]
        size = _size(path, largest if name == STATE else _LARGEST_JSON)
        if size != wanted.bytes:
            what = f"the file has {size:,} bytes, but was written with {wanted.bytes:,}"
            raise BadInput(what, str(path), _ADVICE)
        if name != STATE:
            texts[name] = _read(path, _LARGEST_JSON)
        found = _sum(path) if name == STATE else _sum_of(texts[name])
        if found != wanted:
            raise BadInput("the file's SHA-256 is not the one in the manifest", str(path), _ADVICE)
    path = folder / CHECKPOINT
    file = _parse(format_of(_CheckpointFile), texts[CHECKPOINT], path, "a checkpoint")
    return Opened(
        folder, without_head(file, Checkpoint), Plan.from_json(texts[PLAN], str(folder / PLAN))
    )


def _check_same(folder: Path, fresh: Path) -> None:
    if _read(folder / MANIFEST, _LARGEST_MANIFEST) != (fresh / MANIFEST).read_bytes():
        raise BadInput("the folder already has another checkpoint", str(folder), _ELSEWHERE)


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _parse(kind: TypeAdapter[Any], text: bytes, path: Path, what: str) -> Any:
    """Return the document; refuse any text that `_json` would not write, such as a double key."""
    try:
        document = kind.validate_json(text)
        if _json(json.loads(text)) != text:
            raise BadInput(f"this is not {what} as mpcompile writes it", str(path), _ADVICE)
    except ValidationError as error:
        raise BadInput(f"this is not {what}: {sentence(error)}", str(path), _ADVICE) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"this is not {what} as mpcompile writes it", str(path), _ADVICE) from error
    return document


def _size(path: Path, largest: int) -> int:
    """Return a plain file's size in bytes; raise BadInput for a link, a folder or a large file."""
    try:
        found = path.lstat()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise BadInput(f"the checkpoint is not complete ({reason})", str(path), _ADVICE) from error
    if not stat.S_ISREG(found.st_mode):
        raise BadInput("this is not a plain file", str(path), _ADVICE)
    if found.st_size > largest:
        what = f"the file has {found.st_size:,} bytes, which is too large"
        raise BadInput(what, str(path), _ADVICE)
    return found.st_size


def _read(path: Path, largest: int) -> bytes:
    _size(path, largest)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"the file cannot be read ({error.strerror})", str(path), _ADVICE) from error


def _sum(path: Path) -> _Sum:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return _Sum(os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise BadInput(f"the file cannot be read ({error.strerror})", str(path), _ADVICE) from error


def _sum_of(text: bytes) -> _Sum:
    return _Sum(len(text), hashlib.sha256(text).hexdigest())
