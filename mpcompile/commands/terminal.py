"""The output of a command for people: a terminal, sentences, warnings on one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

from mpcompile.errors import DamagedCheckpoint, UntriedTorch, printable
from mpcompile.plan.measured import MeasuredOverflow
from mpcompile.plan.policy import UnmatchedOverride

_OURS = (UnmatchedOverride, MeasuredOverflow, DamagedCheckpoint, UntriedTorch)


def open_terminal(json_to: str | None, *, quiet: bool = False) -> Console:
    """Return the terminal for people: stdout, or stderr if ``-`` sends a document to stdout.

    Args:
        json_to: where the document is written, see `mpcompile.artifacts.write_json`.
        quiet: print nothing.
    """
    return Console(stderr=json_to == "-", highlight=False, quiet=quiet)


def say(console: Console, sentence: str) -> None:
    """Print a sentence on one line; a model's names in it are not read as markup."""
    console.print(printable(sentence), markup=False, soft_wrap=True)


@contextmanager
def warnings_on_one_line() -> Iterator[None]:
    """Print each warning of mpcompile on one line; leave other warnings unchanged."""
    show = warnings.showwarning

    def say(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, _OURS):
            sys.stderr.write(f"mpcompile: warning: {printable(str(message))}.\n")
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        for ours in _OURS:
            warnings.simplefilter("always", ours)
        warnings.showwarning = say
        yield
