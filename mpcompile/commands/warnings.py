"""What commands share that need no torch: ranges they are given, warnings on one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from mpcompile.errors import BadInput, DamagedCheckpoint, printable
from mpcompile.plan.measured import MeasuredOverflow
from mpcompile.plan.policy import UnmatchedOverride
from mpcompile.plan.ranges import Ranges, read_ranges


def given_ranges(path: Path | None, margin: int | None, release: bool) -> Ranges | None:
    """Return the ranges a command line names, with its margin; None without a file."""
    if path is None:
        if margin is not None or release:
            raise BadInput("--margin and --release need --ranges", fix="run mpcompile calibrate")
        return None
    ranges = read_ranges(path)
    if margin is not None and not 0 <= margin <= 15:
        raise BadInput(f"--margin is {margin}", fix="give 0 to 15 bits")
    bits = ranges.margin_bits if margin is None else margin
    return replace(ranges, margin_bits=bits, release=release or ranges.release)


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
