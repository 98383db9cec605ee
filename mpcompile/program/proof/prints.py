"""Text that a program writes when it runs: `print`, ``sys.stdout``, ``sys.stderr`` and `logging`.

To compile a step the program runs several times, and then never again. So that its text appears
once, it passes in the program's own eager run, or in the capture if there is no such run.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Any

from mpcompile.program.proof.users_code import is_pythons_file, is_users_file


class _Mode(Enum):
    THROUGH = "through"
    KEPT = "kept"
    DROPPED = "dropped"


class Prints:
    """The text of one program, over several runs of it.

    Args:
        silent: whether no text passes at all.

    Attributes:
        lines: the lines of the user's code that have written text, in order.
    """

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self.lines: list[str] = []
        self._kept: list[Callable[[], Any]] = []
        self._keeps = True
        self._mode: _Mode | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the text back; only that of the first run in such a context counts."""
        with self._in(_Mode.KEPT if self._keeps else _Mode.DROPPED):
            yield
        self._keeps = self._keeps and not self._kept

    @contextmanager
    def dropped(self) -> Iterator[None]:
        """Drop the text."""
        with self._in(_Mode.DROPPED):
            yield

    @contextmanager
    def through(self) -> Iterator[None]:
        """Let the text pass, and forget what was kept back."""
        self._kept.clear()
        self._keeps = False
        with self._in(_Mode.THROUGH):
            yield

    def release(self) -> None:
        """Write what was kept back, because no run of the program let its text pass."""
        for write in self._kept:
            write()
        self._kept.clear()
        self._keeps = False

    @contextmanager
    def _in(self, mode: _Mode) -> Iterator[None]:
        before, self._mode = self._mode, _Mode.DROPPED if self._silent else mode
        try:
            if before is None:
                with self._watching():
                    yield
            else:
                yield
        finally:
            self._mode = before

    @contextmanager
    def _watching(self) -> Iterator[None]:
        streams, handle = (sys.stdout, sys.stderr), logging.Logger.handle

        def watched(logger: logging.Logger, record: logging.LogRecord) -> None:
            if not is_users_file(record.pathname):
                handle(logger, record)
            else:
                self._got(f"{record.pathname}:{record.lineno}", lambda: handle(logger, record))

        mine: tuple[Any, Any] = (_Stream(streams[0], self._got), _Stream(streams[1], self._got))
        loggers: Any = logging.Logger
        sys.stdout, sys.stderr = mine
        loggers.handle = watched
        try:
            yield
        finally:
            loggers.handle = handle
            if (sys.stdout, sys.stderr) == mine:
                sys.stdout, sys.stderr = streams

    def _got(self, line: str, write: Callable[[], Any]) -> None:
        if line not in self.lines:
            self.lines.append(line)
        if self._mode is _Mode.THROUGH:
            write()
        elif self._mode is _Mode.KEPT:
            self._kept.append(write)


class _Stream:
    """A text stream that hands over what the user's code writes, and passes on all other text."""

    def __init__(self, stream: Any, got: Callable[[str, Callable[[], Any]], None]) -> None:
        self._stream, self._got = stream, got

    def write(self, text: str) -> int:
        """Write a text."""
        line = _users_line(inspect.currentframe())
        if line is None:
            self._stream.write(text)
        else:
            self._got(line, lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _users_line(frame: FrameType | None) -> str | None:
    """Return the line of the user's code that writes; None: it is torch's or a warning's text."""
    while frame is not None:
        file = frame.f_code.co_filename
        at_prompt = file.startswith("<") and frame.f_globals.get("__name__") == "__main__"
        if at_prompt or is_users_file(file):
            return f"{file}:{frame.f_lineno}"
        if file != __file__ and (not is_pythons_file(file) or file.endswith("warnings.py")):
            return None
        frame = frame.f_back
    return None
