"""The places of the user's objects in which each call of a step leaves tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mpcompile.program.proof.held import holder_of, put
from mpcompile.program.proof.surroundings import Surroundings, surroundings
from mpcompile.program.returned import Left, Spot


class LeftPlaces:
    """All places that the graphs of a step write, and what holds them now.

    Args:
        left: what the first graph leaves behind, or None.
    """

    def __init__(self, left: Left | None) -> None:
        self._holders: dict[Spot, Any] = dict.fromkeys(left.spots) if left else {}

    def add(self, left: Left) -> bool:
        """Add the places of one more graph; return whether some are new."""
        new = [spot for spot in left.spots if spot not in self._holders]
        self._holders |= dict.fromkeys(new)
        return bool(new)

    def surroundings(self, model: nn.Module, loss: Callable[..., Any] | None) -> Surroundings:
        """Walk over what the program can read, and leave out what is in the places.

        The user may have put another object where one of the places is, so that is looked up too.
        """
        found = surroundings(model, loss)
        if not self._holders:
            return found
        self._holders = {spot: holder_of(found.holders, spot) for spot in self._holders}
        skip = {(id(holder), spot.key) for spot, holder in self._holders.items()}
        return surroundings(model, loss, skip)

    def keys_in(self, holder: Any) -> set[Any]:
        """Return the keys of the places in one dictionary."""
        return {spot.key for spot, value in self._holders.items() if value is holder}

    def put(self, left: Left, values: Sequence[Any]) -> None:
        """Put one value into each place that is still there."""
        for spot, value in zip(left.spots, values, strict=True):
            holder = self._holders[spot]
            if holder is not None:
                put(holder, spot.key, value)
