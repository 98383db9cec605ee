"""Run a batch again, with a smaller loss scale, whose step was skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpcompile.errors import SkippedSteps, warn
from mpcompile.passes.step.adjust_scale import TRACKER
from mpcompile.passes.step.count_steps import SKIPPED, TAKEN
from mpcompile.passes.step.report_outcome import APPLIED
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.random_state import random_state, set_random_state
from mpcompile.step.loss_scale import SEARCH, LossScale
from mpcompile.torch_private.tensors import version_of

Batch = Sequence[torch.Tensor]


class Repeats:
    """Runs the batches of a step, and some of them again.

    The first batch of a measured loss scale runs until its gradients are finite, from the same
    random numbers; only then does its step count. With `LossScale.retry` the batches of any skipped
    update run again before the next one; each try counts.

    Attributes:
        retried: how many skipped updates were run again.

    Args:
        run: runs one step on a batch.
        state: returns the present state of the step, by slot.
        rule: of the loss scale.
        every: micro-batches of an update.
        device: of the model.
    """

    def __init__(
        self,
        run: Callable[[Batch], Any],
        state: Callable[[], Mapping[str, torch.Tensor]],
        rule: LossScale,
        every: int,
        device: torch.device,
    ) -> None:
        self._run, self._state, self._rule = run, state, rule
        self._every, self._device = every, device
        self._searches = rule.measured and rule.dynamic and every == 1
        self._repeats = rule.retry and rule.gated and rule.dynamic
        self._kept: list[tuple[Batch, list[int]]] = []
        self.retried = 0

    @property
    def needed(self) -> bool:
        """Whether this must run the next batch."""
        return self._searches or self._repeats

    def forget(self) -> None:
        """Run no earlier batch again: another state is loaded."""
        self._kept.clear()

    def keep_scale(self) -> None:
        """Begin with the present scale, which the user has given."""
        self._searches = False

    def __call__(self, batch: Batch) -> Any:
        """Run a batch; return the result of its step."""
        if self._searches:
            self._searches = False
            return self._noted(batch, self._search(batch))
        if len(self._kept) == self._every:
            self.finish()
        return self._noted(batch, self._run(batch))

    def finish(self) -> None:
        """Run the batches of the last update again until it is applied.

        Warns:
            SkippedSteps: the loss is not finite, no scale helps, or a batch was written to.
        """
        if len(self._kept) < self._every:
            return
        kept, self._kept = self._kept, []
        if bool(self._state()[APPLIED]):
            return
        self.retried += 1
        while True:
            before = float(self._state()[SCALE])
            if any(list(map(version_of, batch)) != versions for batch, versions in kept):
                self._give_up("its batch was written to after the call")
                return
            results = [self._run(batch) for batch, _ in kept]
            if bool(self._state()[APPLIED]):
                return
            if not all(bool(loss_of(result).isfinite()) for result in results):
                self._give_up("its loss is not finite")
                return
            if float(self._state()[SCALE]) >= before:
                self._give_up(f"its gradients are not finite even at a loss scale of {before:g}")
                return

    def _noted(self, batch: Batch, result: Any) -> Any:
        if self._repeats:
            self._kept.append((batch, list(map(version_of, batch))))
        return result

    def _search(self, batch: Batch) -> Any:
        state = self._state()
        if int(state[TAKEN]) or int(state[SKIPPED]):
            return self._run(batch)  # a checkpoint was loaded
        random, scale = random_state(self._device), float(state[SCALE])
        first = scale
        while True:
            result, state = self._run(batch), self._state()
            if int(state[TAKEN]):
                return result
            hopeless = not bool(loss_of(result).isfinite())
            if hopeless or scale * SEARCH < self._rule.floor:
                state[SCALE].fill_(max(first * self._rule.backoff, self._rule.floor))
                return result
            scale *= SEARCH
            state[SCALE].fill_(scale)
            state[TRACKER].zero_()
            state[SKIPPED].zero_()
            set_random_state(random)

    def _give_up(self, why: str) -> None:
        warn(
            f"a skipped step was not run again, because {why}; `mpcompile check` names the op.",
            SkippedSteps,
        )


def loss_of(result: Any) -> torch.Tensor:
    """Return the loss of a step's result, which may be a pair of it and anything."""
    loss: torch.Tensor = result[0] if isinstance(result, tuple | list) else result
    return loss
