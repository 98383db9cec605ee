"""What a step says of its updates: loss scale, counters, the last update; a GradScaler's state."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

import torch

from mpcompile.errors import BadInput
from mpcompile.passes.step.adjust_scale import TRACKER
from mpcompile.passes.step.count_steps import SKIPPED, TAKEN
from mpcompile.passes.step.report_outcome import APPLIED, GRADIENT_NORM
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.plan.plan import Plan
from mpcompile.precision import Precision
from mpcompile.step.graph import StepGraph
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role
from mpcompile.train.bound_step import Uncopied
from mpcompile.train.repeats import Repeats


class Outcome(Uncopied):
    """Reads what the update graph reports."""

    _state: dict[str, torch.Tensor]
    _rule: LossScale
    _repeats: Repeats
    _precision: Precision
    plan: Plan
    backend: str
    step: StepGraph
    pieces: list[Any]

    def summary(self) -> str:
        """Return in a few lines what the step is, and its state; this reads the device."""
        made, kinds = self.step, Counter(slot.role for slot in self.step.slots.values())
        lines = [
            f"training step in {self._kind}",
            f"{kinds[Role.GRADIENT]} trained weights, {len(made.working)} with a 16-bit copy",
            f"{self.taken} updates applied, {self.skipped} skipped",
        ]
        if self._rule.active:
            lines.append(f"loss scale {self.loss_scale:g}")
        shown = map(str, self.pieces) if self.pieces else [str(self.plan)]
        return "\n".join([*lines, *shown])

    def __repr__(self) -> str:
        """Return the first line of the summary, which reads no device."""
        return f"<TrainStep in {self._kind}>"

    @property
    def _kind(self) -> str:
        count = len(self.pieces)
        pieces = f" in {count} piece{'s' * (count != 1)}" if count else ""
        return f"{self._precision.short}{pieces}, by {self.backend}"

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return f"<pre>{escape(self.summary())}</pre>"

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

    @property
    def retried(self) -> int:
        """The number of skipped updates that ran again, with `LossScale.retry`."""
        return self._repeats.retried

    def scaler_state(self) -> dict[str, float | int]:
        """Return the loss scale under the keys of ``GradScaler.state_dict``; empty without one."""
        rule = self._rule
        if not rule.active:
            return {}
        return {
            "scale": float(self._state[SCALE]),
            "growth_factor": rule.growth,
            "backoff_factor": rule.backoff,
            "growth_interval": rule.interval,
            "_growth_tracker": int(self._state[TRACKER]) if TRACKER in self._state else 0,
        }

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Take over scale and tracker from a ``GradScaler.state_dict()``.

        The factors and the interval are constants of the compiled graph, so they must agree.

        Raises:
            BadInput: a key is missing, or a factor differs.
        """
        mine = self.scaler_state()
        if set(state) != set(mine):
            raise BadInput(
                f"the scaler state has the keys {sorted(state)}",
                fix=f"give the keys {sorted(mine)}",
            )
        for key in ("growth_factor", "backoff_factor", "growth_interval"):
            if key in mine and state[key] != mine[key]:
                raise BadInput(
                    f"{key} is {state[key]} in the state, but {mine[key]} in this step",
                    fix="compile with a LossScale that has the same factors",
                )
        if mine:
            self._state[SCALE].fill_(state["scale"])
        if TRACKER in self._state:
            self._state[TRACKER].fill_(state["_growth_tracker"])
        self._repeats.keep_scale()
