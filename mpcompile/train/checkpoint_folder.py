"""The checkpoints of one run, one folder each: find the newest complete one, remove old ones."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from mpcompile.errors import BadInput
from mpcompile.train.checkpoint_file import MANIFEST, Opened, read_checkpoint

_NAME = re.compile(r"step-([0-9]{8,15})")
_HIDDEN = re.compile(r"\.step-[0-9]{8,15}\..+")


def folder_of(run: Path, steps: int) -> Path:
    """Return the folder of the checkpoint after a number of steps."""
    return run / f"step-{steps:08d}"


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints, complete or not, the newest first; links are left out."""
    if not run.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in run.iterdir()
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def newest(run: Path, largest: int) -> tuple[Opened, tuple[str, ...]]:
    """Return a run's newest complete checkpoint, and the errors of the newer ones.

    Args:
        run: the folder of the checkpoints, or one checkpoint.
        largest: most bytes that a checkpoint's state may have.

    Raises:
        BadInput: no checkpoint is complete.
    """
    if (run / MANIFEST).exists() or _NAME.fullmatch(run.name):
        return read_checkpoint(run, largest), ()
    wrong: list[str] = []
    for folder in checkpoints(run):
        try:
            return read_checkpoint(folder, largest), tuple(wrong)
        except BadInput as error:
            wrong.append(f"{error.where or folder}: {error.what}")
    if wrong:
        what = f"no checkpoint in this folder is complete ({wrong[0]})"
        raise BadInput(what, str(run), "give the folder of another run")
    raise BadInput("there is no checkpoint in this folder", str(run), "give the folder of a run")


def make_room(folder: Path, largest: int) -> None:
    """Remove half-written folders of the run, and the checkpoint itself if it is damaged.

    Args:
        folder: the checkpoint that is about to be written.
        largest: most bytes that its state may have.
    """
    if folder.parent.is_dir():
        for path in folder.parent.iterdir():
            if _HIDDEN.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
    if folder.exists():
        try:
            read_checkpoint(folder, largest)
        except BadInput:
            _remove(folder)


def drop_old(folder: Path, keep: int) -> None:
    """Remove old checkpoints; those newer than the one that was just written stay.

    Args:
        folder: the checkpoint that was just written.
        keep: how many checkpoints stay, with this one.
    """
    there = checkpoints(folder.parent)
    if folder in there:
        for old in there[there.index(folder) + keep :]:
            _remove(old)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; an interrupted removal leaves no half checkpoint under its name."""
    try:
        away = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        folder.rename(away / folder.name)
        shutil.rmtree(away, ignore_errors=True)
    except OSError as error:
        what = f"the checkpoint cannot be removed ({error.strerror})"
        raise BadInput(what, str(folder), "remove the folder by hand") from error
