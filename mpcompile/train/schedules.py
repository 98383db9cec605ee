"""Learning-rate schedules that step after each applied update only."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mpcompile.errors import BadInput


class Schedules:
    """The schedules of one optimizer, and the outcome of its last update.

    The device stores whether an update was applied. The copy to the host does not block. The host
    waits for it only before the next update, so its work between two steps overlaps with the
    device.

    Args:
        optimizer: the schedules set its learning rates.
        gated: whether an update can be skipped; if not, the outcome is not read.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, gated: bool) -> None:
        self._optimizer, self._gated = optimizer, gated
        self._schedules: list[LRScheduler] = []
        self._flag: torch.Tensor | None = None
        self._copied: Any = None
        self._pending = False

    def add(self, schedule: LRScheduler) -> None:
        """Take over the stepping of a schedule.

        Raises:
            BadInput: the schedule is of another optimizer, needs a measured number, or was added
                before.
        """
        kind = type(schedule).__name__
        if isinstance(schedule, ReduceLROnPlateau):
            raise BadInput(
                f"{kind}.step() needs a measured number",
                fix="call step() of this schedule yourself, for example after each evaluation",
            )
        if not isinstance(schedule, LRScheduler):
            raise BadInput(f"a {kind} is not a learning-rate schedule", fix="give an LRScheduler")
        optimizer = getattr(schedule, "optimizer", self._optimizer)
        if optimizer is not self._optimizer:
            raise BadInput(
                f"the {kind} sets the learning rates of another optimizer",
                fix="add the schedule to the step of that optimizer",
            )
        if schedule in self._schedules:
            raise BadInput(f"this step already steps this {kind}", fix="add the schedule once")
        self._schedules.append(schedule)

    def note(self, applied: torch.Tensor) -> None:
        """Start to copy the outcome of an update.

        Args:
            applied: 0-d bool on the step's device.
        """
        if not self._schedules:
            return
        self._pending = True
        if self._gated:
            cuda = applied.device.type == "cuda"
            if self._flag is None:
                self._flag = torch.empty((), dtype=torch.bool, pin_memory=cuda)
            self._flag.copy_(applied, non_blocking=True)
            if cuda:
                self._copied = torch.cuda.Event()
                self._copied.record()

    def settle(self) -> None:
        """Step the schedules if the last update was applied and they have not been stepped yet."""
        if not self._pending:
            return
        self._pending = False
        if self._copied is not None:
            self._copied.synchronize()
        if self._flag is None or bool(self._flag):
            for schedule in self._schedules:
                schedule.step()
