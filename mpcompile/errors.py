"""Errors, each one sentence: what is wrong, where in the user's file, what to do."""

from __future__ import annotations

import inspect
import os
import traceback
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

_HERE = f"{Path(__file__).parent}{os.sep}"


class CompileError(Exception):
    """A refusal a user can act on.

    An unknown part is None. An empty part is refused, because the sentence would begin or end
    with nothing.

    Attributes:
        what: what is wrong, without a full stop.
        where: ``file:line`` in the user's own file, a module path, or None if neither is known.
        fix: what to do about it, as an imperative, or None if there is nothing to do.
        detail: the traceback of the error behind it, if `alone` has cut that off.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        for part, text in (("what", what), ("where", where), ("fix", fix)):
            if text is not None and not text.strip():
                raise ValueError(f"the part {part!r} of an error is empty; leave it out")
        self.what = what
        self.where = where
        self.fix = fix
        self.detail = ""
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        place = "" if self.where is None else f"{self.where}: "
        advice = "" if self.fix is None else f"; {self.fix}"
        return f"{place}{self.what}{advice}."


class CheckFailed(CompileError):
    """A comparison that the user requested has failed (exit code 1)."""

    exit_code = 1


class BadInput(CompileError):
    """The file, the workload or an argument is wrong (exit code 2)."""

    exit_code = 2


class CannotCapture(CompileError):
    """The program is valid PyTorch but cannot become one graph (exit code 3)."""

    exit_code = 3


class Unfaithful(CompileError):
    """A captured graph does not compute what the program computes (exit code 3)."""

    exit_code = 3


class LostProcess(CompileError):
    """Another process of the run is gone or no longer answers (exit code 4)."""

    exit_code = 4


class NotOneGraph(CannotCapture):
    """The program runs in eager PyTorch, and `torch.export` makes no graph of it."""


class ReplacedBuffer(NotOneGraph):
    """The program puts a tensor of another shape or dtype in the place of a buffer."""


class Defect(Exception):
    """A rule of mpcompile itself is broken, independent of the user's input (exit code 70)."""


class ChangingNumber(UserWarning):
    """A Python number that the program reads has had many values, and each made another graph."""


class DamagedCheckpoint(UserWarning):
    """A newer checkpoint was not complete, so an older one was loaded."""


class InexactStep(UserWarning):
    """The first batch in 16 bits is too far from the same batch in FP32."""


class SideEffect(UserWarning):
    """The program changes a Python value when it runs, and a compiled step does not."""


class SkippedSteps(UserWarning):
    """Steps are skipped one after the other, so nothing is trained."""


class Unverified(UserWarning):
    """A captured graph could not be compared with the program."""


class UnusedParameters(UserWarning):
    """The optimizer holds parameters that the loss does not reach; they stay as they are."""


class UntriedTorch(UserWarning):
    """The version of torch is outside the range that this package was tested with."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` with the nearest of the known words, or ``""``."""
    near = get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def printable(text: str) -> str:
    """Return a text with its control characters escaped, safe for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def from_here(text: str) -> str:
    """Return a text with files below the working folder as paths relative to it."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")


def alone(error: CompileError) -> None:
    """Cut an error off from the errors behind it, so that a script prints its sentence alone.

    What stood behind it is kept as text in `CompileError.detail`. With ``MPCOMPILE_DEBUG=1`` in the
    environment all of it is printed.
    """
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is None or os.environ.get("MPCOMPILE_DEBUG"):
        return
    error.detail = "".join(traceback.format_exception(behind))
    error.__cause__, error.__suppress_context__ = None, True


def warn(what: str, category: type[Warning]) -> None:
    """Issue a warning whose place is the nearest caller outside this package.

    ``warnings.warn`` can do this itself with ``skip_file_prefixes``, from Python 3.12 on.
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(what, category, stacklevel=level)
