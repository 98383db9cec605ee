"""What a program does beside its tensors when it runs: draws, and changes of Python values.

A graph holds neither. A number that was drawn would be the same in each step, so the program is
refused. A change is undone, because it may hold a tensor without values, and is said.
`torch.export` itself puts back attributes of modules; only the proof's own run shows these.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import numpy as np
import torch

from mpcompile.errors import NotOneGraph, SideEffect, warn
from mpcompile.program.proof.held import put
from mpcompile.program.proof.prints import Prints
from mpcompile.program.proof.second_look import lines_of, loss_of_a_run
from mpcompile.program.proof.snapshot import Change, Snapshot
from mpcompile.program.proof.surroundings import surroundings
from mpcompile.program.tracing.export import definition
from mpcompile.program.workload import Workload


def _numpy_state() -> Any:
    """Return the state of NumPy's generator as values that can be compared; its text takes 2 ms."""
    return _plain(np.random.get_state(legacy=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


_GLOBAL: dict[str, Callable[[], Any]] = {
    "Python's random": random.getstate,
    "NumPy's random": _numpy_state,
}


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators of Python and NumPy back at the end."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Effects:
    """The effects of one program, collected over several runs of it.

    Args:
        workload: the program.
        again: whether it was compiled before, for another batch; then its text is dropped.

    Attributes:
        found: what the program can read.
        prints: the text that it writes.
    """

    def __init__(self, workload: Workload, *, again: bool = False) -> None:
        self.found = surroundings(workload.model, workload.loss)
        self.prints = Prints(silent=again)
        self._workload = workload
        self._note = Snapshot(self.found)
        self._states = {name: state() for name, state in _GLOBAL.items()}
        self._changes: dict[str, Change] = {}
        self._written: list[str] = []
        self._drawn: list[str] = []
        self._left: set[str] = set()
        self._read: set[str] = set()

    def put_back(self) -> None:
        """Put back what the program has changed beside tensors."""
        self._note.restore()

    def note_left(self, done: Iterable[str], read: Iterable[str]) -> None:
        """Note the places that get a tensor from the program.

        Args:
            done: those in which the step puts it too.
            read: those that the next call of the program reads, so that a step cannot do it.
        """
        self._left.update(done)
        self._read.update(read)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo what runs of the program inside the ``with`` block change beside tensors.

        Raises:
            NotOneGraph: the program draws numbers from a generator that is not torch's.
        """
        with generators_kept(), self.prints.kept():
            try:
                yield
                self.note()
            finally:
                self._note.restore()
        if self._drawn:
            raise self._refusal(self._drawn[0])

    @contextmanager
    def undone_unsaid(self) -> Iterator[None]:
        """Undo what a run changes beside tensors; nothing is noted, because each step does it."""
        with generators_kept(), self.prints.dropped():
            try:
                yield
            finally:
                self._note.restore()

    def note(self) -> None:
        """Note what the program has changed and drawn."""
        self._drawn += [name for name, state in _GLOBAL.items() if state() != self._states[name]]
        self._drawn += self._note.drawn()
        for change in self._note.changes():
            # A list that was added to says more than the attribute that holds a copy.
            if not change.is_state and not (change.path in self._changes and change.named):
                self._changes[change.path] = change

    def note_written(self, paths: list[str]) -> None:
        """Note tensors outside the model's state that the program writes in place."""
        self._written += paths

    def say(self) -> None:
        """Warn with `SideEffect` of each change once, with the line that makes it."""
        lines = dict[str, str]()
        changes = {path: found for path, found in self._changes.items() if path not in self._left}
        for path, change in self._decided(changes).items():
            put(change.holder.value, change.key, change.after)
            del changes[path]
        if changes:
            probes = {path: self._note.probe(change) for path, change in changes.items()}
            lines = self._lines(probes)
        for path, change in changes.items():
            tensor = change.named and isinstance(change.after, torch.Tensor)
            kind = "gets a tensor from the program" if tensor else "is changed by the program"
            self._warn(path, kind, lines.get(path))
        for path in self._written:
            self._warn(path, "is written by the program", None)
        self.prints.release()
        if self.prints.lines:
            first, *rest = self.prints.lines
            more = f", here and in {len(rest)} more line{'s' * (len(rest) > 1)}," if rest else ""
            warn(
                f"{first}: the program writes text{more} when it runs, and a compiled step does "
                "not do that; print what the step returns.",
                SideEffect,
            )

    def _decided(self, changes: Mapping[str, Change]) -> dict[str, Change]:
        """Return the changes that only the first run of the program makes.

        Such a program chooses a mode once, for example from the dtype of its labels: a name or a
        truth value takes the place of None, and a second run gives the same loss and changes
        nothing more. The step may leave it as the first run has set it.
        """
        chosen = {
            path: change
            for path, change in changes.items()
            if change.before is None
            and change.named
            and isinstance(change.after, bool | str | Enum)
        }
        if not chosen:
            return {}

        def made() -> dict[str, Any]:
            return {item.path: item.after for item in self._note.changes() if item.path in chosen}

        with self.undone_unsaid():
            first, before = loss_of_a_run(self._workload, self.found), made()
            second, after = loss_of_a_run(self._workload, self.found), made()
        if first is None or second is None or not torch.equal(first, second):
            return {}
        return {path: item for path, item in chosen.items() if before.get(path) == after.get(path)}

    def _warn(self, path: str, kind: str, line: str | None) -> None:
        where = line or definition(self._workload.loss) or self._workload.origin
        fix = "return it beside the loss, or change it outside the step"
        if path in self._read:
            kind += " and read by its next call"
            fix = "make it a buffer with register_buffer, which a step reads and writes"
        warn(
            f"{where + ': ' if where else ''}{path} {kind} when it runs, and a compiled step "
            f"does not do that; {fix}.",
            SideEffect,
        )

    def _refusal(self, name: str) -> NotOneGraph:
        probe = _GLOBAL.get(name, lambda: name in self._note.drawn())
        return NotOneGraph(
            f"the program draws a number from {name}, which would be the same in every step",
            self._lines({name: probe}).get(name)
            or definition(self._workload.loss)
            or self._workload.origin,
            "draw it with torch, such as torch.rand(()), or draw it before the step and give it in "
            "the batch",
        )

    def _lines(self, probes: dict[str, Callable[[], Any]]) -> dict[str, str]:
        with self.undone_unsaid():
            return lines_of(self._workload, self.found, probes)
