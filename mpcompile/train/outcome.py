"""What a step says of its updates: loss scale, counters, and the last update."""

from __future__ import annotations

import torch

from mpcompile.errors import BadInput
from mpcompile.passes.step.count_steps import SKIPPED, TAKEN
from mpcompile.passes.step.report_outcome import APPLIED, GRADIENT_NORM
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.train.bound_step import Uncopied


class Outcome(Uncopied):
    """Reads what the update graph reports."""

    _state: dict[str, torch.Tensor]

    @property
    def loss_scale(self) -> float:
        """The current loss scale; 1 if there is none. This reads it from the device."""
        return float(self._state[SCALE]) if SCALE in self._state else 1.0

    @property
    def taken(self) -> int:
        """The number of applied updates. This reads the counter from the device."""
        return int(self._state[TAKEN])

    @property
    def skipped(self) -> int:
        """The number of skipped updates, where a gradient was not finite; reads the device."""
        return int(self._state[SKIPPED])

    @property
    def applied(self) -> torch.Tensor:
        """Whether the last update was applied: 0-d bool on the device; the next step writes it."""
        return self._state[APPLIED]

    @property
    def gradient_norm(self) -> torch.Tensor:
        """The 2-norm of all unscaled gradients of the last step before clipping: 0-d FP32.

        It stays on the device, and the next step writes to the same tensor.

        Raises:
            BadInput: the step does not clip by norm, so it computes no norm.
        """
        if GRADIENT_NORM not in self._state:
            raise BadInput(
                "the step computes no norm of the gradients", fix="compile with max_grad_norm"
            )
        return self._state[GRADIENT_NORM]
