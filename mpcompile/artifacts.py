"""Write files and folders completely or not at all, and never over others without --force."""

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
    """Raise BadInput if the folder exists and may not be replaced, or cannot be created."""
    if folder.exists() and not force:
        raise BadInput(
            f"{folder} already exists", fix="give --force to replace it, or choose another --output"
        )
    if folder.exists() and not (folder / "plan.json").is_file():
        raise BadInput(
            f"{folder} is not an artifact folder, so --force does not replace it",
            fix="choose another --output",
        )
    if not folder.resolve().parent.is_dir():
        raise BadInput(
            f"{folder.parent} is not a folder", fix="create it, or choose another folder"
        )


def write_folder(folder: Path, files: dict[str, str], force: bool) -> None:
    """Write files into a new folder, which gets its name only when it is complete.

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
    """Wait until a file, or the list of names in a folder, is on the disk.

    Raises:
        OSError: the system cannot open the path or write it to the disk.
    """
    if path.is_dir() and os.name != "posix":
        return  # only POSIX systems can open a folder
    # Windows flushes only files that are opened for writing.
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def check_file(file: Path, force: bool) -> None:
    """Raise BadInput if the file exists and may not be replaced, or cannot be created."""
    if file.is_dir():
        raise BadInput(f"{file} is a folder", fix="choose another file")
    if file.exists() and not force:
        raise BadInput(
            f"{file} already exists", fix="give --force to replace it, or choose another file"
        )
    if not file.resolve().parent.is_dir():
        raise BadInput(f"{file.parent} is not a folder", fix="create it, or choose another folder")


def write_file(file: Path, content: str | bytes, force: bool) -> None:
    """Write a file, which gets its name only when it is complete; see `check_file`."""
    check_file(file, force)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.resolve().parent) as folder:
        fresh = Path(folder) / file.name
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.replace(file)


def write_json(target: str | None, document: dict[str, Any]) -> None:
    """Write one JSON document to a file, to stdout if the target is ``-``, or nowhere if None.

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
