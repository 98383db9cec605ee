"""The ways of a program whose Python decides by values: what a run does to the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """What a run of a program does to the model; a step graph is for one way.

    Attributes:
        wide: names of the trained parameters that the loss reaches in FP32, in the model's order.
        narrow: names of those that it reaches by a 16-bit copy; a parameter can be in both.
        written: names of the buffers that the program writes.
        beside: how many tensors the program returns beside the loss; None: it returns the loss
            alone.
    """

    wide: tuple[str, ...]
    narrow: tuple[str, ...]
    written: tuple[str, ...]
    beside: int | None = None


class OtherWay(Exception):
    """A run has taken another way than that of its graph; nothing was updated.

    Attributes:
        way: the way that it has taken.
        repeated: inside this context the program returns what it has made, and does not run.
    """

    def __init__(self, way: Way, repeated: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.way, self.repeated = way, repeated
