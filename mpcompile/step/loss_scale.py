"""The loss scale: none, static or dynamic (paper 3.2; semantics of ``torch.amp.GradScaler``)."""

from __future__ import annotations

from dataclasses import dataclass

from mpcompile.errors import BadInput


@dataclass(frozen=True, slots=True)
class LossScale:
    """The rule that keeps gradients in the range of FP16. Its state is in the graph.

    A step whose unscaled gradients hold an Inf or NaN is skipped: no weight, optimizer state, step
    counter or batch-norm statistic changes. A dynamic scale is then multiplied by `backoff`; after
    `interval` clean steps in a row it is multiplied by `growth`. It never leaves
    ``[floor, ceiling]``.

    Attributes:
        initial: the scale before the first step; 1 with ``gated=False`` is no loss scaling.
        growth: factor after `interval` clean steps; 1 for a static scale.
        backoff: factor after a skipped step; 1 for a static scale.
        interval: clean steps between growths.
        floor: smallest scale; below 1 for losses whose gradients are beyond FP16 unscaled.
        ceiling: largest scale.
        gated: whether a non-finite gradient skips the step.

    Raises:
        BadInput: a number out of its range.
    """

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    floor: float = 2.0**-24
    ceiling: float = 2.0**24
    gated: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.floor <= self.initial <= self.ceiling < float("inf"):
            raise BadInput(
                f"the scale {self.initial:g} is not in [{self.floor:g}, {self.ceiling:g}]",
                "LossScale",
                "choose 0 < floor <= initial <= ceiling < inf",
            )
        if not (self.growth >= 1.0 and 0.0 < self.backoff <= 1.0 and self.interval >= 1):
            raise BadInput(
                f"growth {self.growth:g}, backoff {self.backoff:g}, interval {self.interval}",
                "LossScale",
                "choose growth >= 1, 0 < backoff <= 1, interval >= 1",
            )

    @property
    def dynamic(self) -> bool:
        """Whether the scale ever changes."""
        return self.growth != 1.0 or self.backoff != 1.0

    @property
    def active(self) -> bool:
        """Whether any node is needed for it."""
        return self.gated or self.dynamic or self.initial != 1.0

    @staticmethod
    def none() -> LossScale:
        """No scaling and no gate: for FP32 and BF16."""
        return LossScale(1.0, growth=1.0, backoff=1.0, gated=False)

    @staticmethod
    def static(scale: float) -> LossScale:
        """A scale that never changes; a non-finite gradient still skips the step."""
        return LossScale(
            scale, growth=1.0, backoff=1.0, floor=min(scale, 1.0), ceiling=max(scale, 2.0**24)
        )
