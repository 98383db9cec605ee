"""The loss scale: none, static or dynamic (paper 3.2; semantics of ``torch.amp.GradScaler``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mpcompile.errors import BadInput
from mpcompile.precision import Precision

HEADROOM_BITS = 2
"""The distance in powers of two between the largest gradient and the largest FP16 number."""
_USUAL = 2.0**16
"""The first scale of GradScaler."""
SEARCH = 2.0**-4
"""The next loss scale for a first batch after one that overflows."""
_ROOM_ABOVE = 2.0**6
"""How much farther from overflow a scale above 2^16 is: first gradients may be unusually small."""
_LARGEST_POWER = 127


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
        measured: whether the first batch decides `initial`, see `auto`.
        retry: whether a batch whose step was skipped runs again, with the smaller scale, before the
            next one. The host then waits for each step to end before it starts the next.

    Raises:
        BadInput: a number out of its range.
    """

    initial: float = _USUAL
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    floor: float = 2.0**-24
    ceiling: float = 2.0**24
    gated: bool = True
    measured: bool = False
    retry: bool = False

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

    def continues(self, stored: LossScale) -> bool:
        """Whether a step with this rule can go on with the scale that a step with another left.

        The first scale of a dynamic rule does not count then, and a lower floor takes over any
        scale.
        """
        begun = replace(
            stored, floor=min(self.floor, stored.floor), measured=self.measured, retry=self.retry
        )
        if self.dynamic:
            begun = replace(begun, initial=self.initial)
        return begun == self

    @staticmethod
    def auto(*, retry: bool = False) -> LossScale:
        """A dynamic scale whose first value is measured; the default with FP16.

        It is the value of `for_gradients` for the first batch. If a gradient of the first step is
        not finite all the same, the step runs again with a smaller scale until all are. From then
        on it is the dynamic scale of ``LossScale()``.

        Args:
            retry: see `LossScale`.
        """
        return LossScale(measured=True, retry=retry)

    def for_gradients(self, largest: float) -> LossScale:
        """Return the rule that begins with the scale for gradients of a size.

        The largest gradient is then `HEADROOM_BITS` below overflow, or more where that takes a
        scale above 2^16, because gradients may be small at the very beginning only.

        Args:
            largest: the largest magnitude of the unscaled gradients in FP16; one that is not
                finite, or zero, changes nothing.
        """
        fitting = recommended_scale(largest) if math.isfinite(largest) else None
        if fitting is None:
            return self
        initial = min(fitting, max(_USUAL, fitting / _ROOM_ABOVE))
        return replace(self, initial=min(max(initial, self.floor), self.ceiling))

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


def recommended_scale(largest: float) -> float | None:
    """Return the largest power of two that keeps a number `HEADROOM_BITS` below overflow.

    The scale is below 1 if the number is beyond 65504 / 4. It is at most 2^127, because it is an
    FP32 number. For zero the result is None.

    Args:
        largest: the largest magnitude of the unscaled gradients, finite.
    """
    if largest == 0.0:
        return None
    limit, bits = math.frexp(Precision.FP16.largest / 2**HEADROOM_BITS)
    fraction, exponent = math.frexp(largest)
    power = bits - exponent - (fraction > limit)
    return 2.0 ** min(power, _LARGEST_POWER)
