"""Find the line of a program that changes something, by a second run that looks at every line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch

from mpcompile.program.proof.snapshot import TensorCopies
from mpcompile.program.proof.surroundings import Surroundings
from mpcompile.program.proof.users_code import is_users_file
from mpcompile.program.random_state import drawn_again, random_state
from mpcompile.program.workload import Workload
from mpcompile.torch_private.tracing import leaves_of

Probe = Callable[[], Any]
"""Returns something that compares as unequal after the change."""


def lines_of(
    workload: Workload, found: Surroundings, probes: Mapping[str, Probe]
) -> dict[str, str]:
    """Run a program in eager PyTorch and return the line of each probe's first change.

    Args:
        workload: the program; the caller puts back what is no tensor.
        found: what it can read; its tensors are put back here.
        probes: what to watch, by name.

    Returns:
        ``file:line`` in the user's code; a change that was not seen is missing.
    """
    copies = TensorCopies(found.tensors)
    look = _Look(probes)
    before = sys.gettrace()
    batch = [value.detach().clone() for value in workload.batch]
    device = next((value.device for _, value in found.tensors), torch.device("cpu"))
    try:
        with drawn_again(random_state(device)), torch.enable_grad():
            sys.settrace(look.enter)
            workload.run(workload.model, batch)
            look.compare()
    except Exception:
        # The first look has told of it, or the proof will; a line was not found.
        return look.lines
    finally:
        sys.settrace(before)
        copies.restore()
    return look.lines


def loss_of_a_run(workload: Workload, found: Surroundings) -> torch.Tensor | None:
    """Run a program in eager PyTorch and return its loss; None if it fails.

    Args:
        workload: the program; the caller puts back what is no tensor.
        found: what it can read; its tensors are put back here.
    """
    copies = TensorCopies(found.tensors)
    batch = [value.detach().clone() for value in workload.batch]
    device = next((value.device for _, value in found.tensors), torch.device("cpu"))
    try:
        with drawn_again(random_state(device)), torch.enable_grad():
            loss, *_ = leaves_of(workload.run(workload.model, batch))
            return loss.detach()  # type: ignore[no-any-return]
    except Exception:
        return None
    finally:
        copies.restore()


class _Look:
    """Compares the probes before each line of the user's code, and where a function returns."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self.lines: dict[str, str] = {}
        self._probes = {name: (probe, probe()) for name, probe in probes.items()}
        self._last = ""

    def enter(self, frame: FrameType, _event: str, _: Any) -> Any:
        """Follow the frames of the user's files only."""
        return self._line if is_users_file(frame.f_code.co_filename) else None

    def compare(self) -> None:
        """Note the last line as the place of each change since the last comparison."""
        for name, (probe, before) in list(self._probes.items()):
            if probe() != before:
                del self._probes[name]
                if self._last:
                    self.lines[name] = self._last

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        self.compare()
        if event == "return":  # the rest of the caller's line runs next
            caller = frame.f_back
            while caller is not None and not is_users_file(caller.f_code.co_filename):
                caller = caller.f_back
            frame = caller or frame
        self._last = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return self._line
