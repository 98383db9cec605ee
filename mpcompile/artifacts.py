"""Write what a transformation leaves behind: whole or not at all, and never over something."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from mpcompile.errors import BadInput
from mpcompile.precision import Precision


def check_free(folder: Path, force: bool) -> None:
    """Raise BadInput if the folder is there and may not be replaced, or cannot be made."""
    if folder.exists() and not force:
        raise BadInput(
            f"{folder} is there already", fix="give --force to replace it, or --output elsewhere"
        )
    if folder.exists() and not (folder / "plan.json").is_file():
        raise BadInput(
            f"{folder} is not an artifact folder, so --force does not replace it",
            fix="choose another --output",
        )
    if not folder.resolve().parent.is_dir():
        raise BadInput(f"{folder.parent} is not a folder", fix="create it, or choose another")


def write_folder(folder: Path, files: dict[str, str], force: bool) -> None:
    """Write files into a new folder that appears under its name only when it is complete.

    Raises:
        BadInput: see `check_free`.
    """
    check_free(folder, force)
    parent = folder.resolve().parent
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    try:
        fresh.chmod(0o755)
        for name, text in files.items():
            (fresh / name).write_text(text, encoding="utf-8")
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=parent))
            folder.rename(old / folder.name)
            fresh.rename(folder)
            shutil.rmtree(old)
        else:
            fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file is on the disk, or the names in a folder are.

    Raises:
        OSError: as the system says.
    """
    if path.is_dir() and os.name != "posix":
        return  # a folder cannot be opened there
    # Windows flushes only what is opened for writing.
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def check_file(file: Path, force: bool) -> None:
    """Raise BadInput if the file is there and may not be replaced, or cannot be made."""
    if file.is_dir():
        raise BadInput(f"{file} is a folder", fix="choose another file")
    if file.exists() and not force:
        raise BadInput(
            f"{file} is there already", fix="give --force to replace it, or write elsewhere"
        )
    if not file.resolve().parent.is_dir():
        raise BadInput(f"{file.parent} is not a folder", fix="create it, or choose another")


def write_file(file: Path, content: str | bytes, force: bool) -> None:
    """Write a file that appears under its name only when it is complete; see `check_file`."""
    check_file(file, force)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.resolve().parent) as place:
        fresh = Path(place) / file.name
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.replace(file)


def write_json(target: str | None, document: dict[str, Any]) -> None:
    """Write one JSON document to a file, to stdout with ``-``, or nowhere.

    Raises:
        BadInput: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(document, default=_value) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        try:
            Path(target).write_text(text, encoding="utf-8")
        except OSError as error:
            what = f"the JSON document cannot be written ({error.strerror})"
            raise BadInput(what, target, "choose another file") from error


def _value(precision: Precision) -> str:
    return precision.value
