"""Warn when steps are skipped one after the other, because nothing is trained then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpcompile.errors import SkippedSteps, warn
from mpcompile.train.repeats import loss_of

MANY = 10
"""So many skipped steps in a row give a warning; a first loss scale of 2^16 may cost a few."""


class SkippedInARow:
    """Counts the steps that were skipped in a row, once in `MANY` steps.

    On CUDA the counter is copied while the device goes on, and read `MANY` steps later.

    Args:
        gradients: returns the unscaled gradients of a batch by name; None: other processes would
            have to take part.
    """

    def __init__(
        self, gradients: Callable[..., Mapping[str, torch.Tensor]] | None, device: torch.device
    ) -> None:
        self._gradients, self._device = gradients, device
        self._calls, self._before, self._said = 0, 0, False
        self._copied: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def note(self, skipped: torch.Tensor, batch: Sequence[torch.Tensor], result: Any) -> None:
        """Note a step.

        Args:
            skipped: the counter of skipped steps, on the device.
            batch: the batch of the step.
            result: its loss, or a pair of it and anything.

        Warns:
            SkippedSteps: the last `MANY` steps were skipped; once until one is not.
        """
        self._calls += 1
        if self._calls % MANY:
            return
        count = self._read(skipped)
        if count is None:
            return
        in_a_row, self._before = count - self._before == MANY, count
        if in_a_row and not self._said:
            why = self._what(batch, loss_of(result))
            warn(
                f"the last {MANY} steps were skipped, because {why}; "
                "`mpcompile check` names the op, and full=(...) keeps it in FP32.",
                SkippedSteps,
            )
        self._said = in_a_row

    def _read(self, skipped: torch.Tensor) -> int | None:
        if self._device.type != "cuda":
            return int(skipped)
        before, event = self._copied, torch.cuda.Event()
        now = torch.empty((), dtype=skipped.dtype, pin_memory=True)
        now.copy_(skipped, non_blocking=True)
        event.record()
        self._copied = now, event
        return int(before[0]) if before is not None and before[1].query() else None

    def _what(self, batch: Sequence[torch.Tensor], loss: torch.Tensor) -> str:
        if not bool(loss.isfinite()):
            return f"the loss is {float(loss):g}"
        if self._gradients is None:
            return "a gradient is not finite"
        with torch.random.fork_rng(_devices(self._device)):
            gradients = self._gradients(batch)
        for name, gradient in gradients.items():
            if not bool(gradient.isfinite().all()):
                return f"the gradient of {name} is not finite"
        return "a gradient is not finite"


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
