"""What people see of a command: its terminal, sentences on it, warnings on one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

from mpcompile.errors import DamagedCheckpoint, printable
from mpcompile.plan.measured import MeasuredOverflow
from mpcompile.plan.policy import UnmatchedOverride


def open_terminal(json_to: str | None, *, quiet: bool = False) -> Console:
    """Return the terminal for people: stdout, or stderr where ``-`` gives stdout to a document.

    Args:
        json_to: where the document goes, see `mpcompile.artifacts.write_json`.
        quiet: say nothing.
    """
    return Console(stderr=json_to == "-", highlight=False, quiet=quiet)


def say(console: Console, sentence: str) -> None:
    """Print a sentence on one line; names of a model in it are no markup."""
    console.print(printable(sentence), markup=False, soft_wrap=True)


@contextmanager
def warnings_on_one_line() -> Iterator[None]:
    """Say each warning of ours in one line; leave those of others."""
    show = warnings.showwarning

    def say(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, (UnmatchedOverride, MeasuredOverflow, DamagedCheckpoint)):
            sys.stderr.write(f"mpcompile: warning: {printable(str(message))}.\n")
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnmatchedOverride)
        warnings.simplefilter("always", MeasuredOverflow)
        warnings.simplefilter("always", DamagedCheckpoint)
        warnings.showwarning = say
        yield
