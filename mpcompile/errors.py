"""What goes wrong, said in one sentence: what, where in the user's file, what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar


class CompileError(Exception):
    """A refusal a user can act on.

    Attributes:
        what: what is wrong, without a full stop.
        where: ``file:line`` in the user's own file, a module path, or ``""`` if no place is known.
        fix: what to do about it, as an imperative, or ``""``.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.fix}" if self.fix else ""
        return f"{place}{self.what}{advice}."


class CheckFailed(CompileError):
    """A comparison the user asked for came out wrong (exit code 1)."""

    exit_code = 1


class BadInput(CompileError):
    """The file, the workload or an argument is wrong (exit code 2)."""

    exit_code = 2


class CannotCapture(CompileError):
    """The program is valid PyTorch but cannot become one graph (exit code 3)."""

    exit_code = 3


class LostProcess(CompileError):
    """Another process of the run is gone or no longer answers (exit code 4)."""

    exit_code = 4


class DamagedCheckpoint(UserWarning):
    """A newer checkpoint was not complete, so an older one was loaded."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` with the nearest of the known words, or ``""``."""
    near = get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def printable(text: str) -> str:
    """Return a text whose control characters are written out, fit for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def from_here(text: str) -> str:
    """Return a text whose files below the working folder are named from there, as people do."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")
