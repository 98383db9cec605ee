"""The work of a training loop between backward and the optimizer: gather and clip gradients."""

from __future__ import annotations

from dataclasses import dataclass

from mpcompile.errors import BadInput
from mpcompile.step.processes import DataParallel


@dataclass(frozen=True, slots=True)
class Loop:
    """The changes to the unscaled FP32 gradients before the optimizer reads them.

    Attributes:
        max_grad_norm: as ``torch.nn.utils.clip_grad_norm_`` with the 2-norm; None: no clipping.
        max_grad_value: as ``torch.nn.utils.clip_grad_value_``; None: no clipping.
        accumulate: micro-batches per update; the optimizer reads the mean of their gradients.
        parallel: the processes over which gradients are averaged too; None: only this one.

    Raises:
        BadInput: a number out of its range, or both ways of clipping.
    """

    max_grad_norm: float | None = None
    max_grad_value: float | None = None
    accumulate: int = 1
    parallel: DataParallel | None = None

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "max_grad_value"):
            limit = getattr(self, name)
            if limit is not None and not 0.0 < limit < float("inf"):
                raise BadInput(f"{name} is {limit}", fix="give a number above 0, or None")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise BadInput(
                f"accumulate is {self.accumulate}",
                fix="give a number of micro-batches: an integer of at least 1",
            )
        if self.max_grad_norm is not None and self.max_grad_value is not None:
            raise BadInput(
                "max_grad_norm and max_grad_value are both given", fix="give one of the two"
            )


PLAIN = Loop()
"""The optimizer reads the gradients as they are."""
