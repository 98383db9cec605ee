"""Learning-rate schedules that step with each applied update, and with no other."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mpcompile.errors import BadInput


class Schedules:
    """The schedules of one optimizer, and the outcome of its last update.

    Whether an update was applied stands on the device. It is copied to the host without waiting,
    and waited for only when it is needed, which is before the next update: what the host does
    between two steps overlaps with the device.

    Args:
        optimizer: whose learning rates they set.
        gated: whether an update can be skipped at all; otherwise nothing is read.
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
            BadInput: it is of another optimizer, it needs a measured number, or it is here already.
        """
        kind = type(schedule).__name__
        if isinstance(schedule, ReduceLROnPlateau):
            raise BadInput(
                f"{kind}.step() needs a measured number",
                fix="step it yourself, for example after each evaluation",
            )
        if not isinstance(schedule, LRScheduler):
            raise BadInput(f"a {kind} is no learning-rate schedule", fix="give an LRScheduler")
        optimizer = getattr(schedule, "optimizer", self._optimizer)
        if optimizer is not self._optimizer:
            raise BadInput(
                f"the {kind} sets the rates of another optimizer", fix="give it to that one's step"
            )
        if schedule in self._schedules:
            raise BadInput(f"this {kind} is stepped already", fix="give it once")
        self._schedules.append(schedule)

    def note(self, applied: torch.Tensor) -> None:
        """Start to copy the outcome of an update: a 0-d bool on its device."""
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
