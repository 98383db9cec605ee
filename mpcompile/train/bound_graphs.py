"""Lowered graphs bound to a step's state: only the batch and what passes between them moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpcompile.lower.lower import Lowered
from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import Role


class BoundGradient:
    """A gradient graph on a step's state, for batches of one shape.

    Attributes:
        results: the slots of what it returns, the loss first.
        returned: places among them of the loss and of what the caller gets beside it.

    Args:
        step: the step graph.
        lowered: the same step.
        state: by slot.
        batch: an example, which gives strides.
        is_open: whether batches may be of another size than the example.
    """

    def __init__(
        self,
        step: StepGraph,
        lowered: Lowered,
        state: Mapping[str, torch.Tensor],
        batch: Sequence[torch.Tensor],
        is_open: bool = False,
    ) -> None:
        self.results = lowered.gradient_results
        self.returned = [
            place
            for place, name in enumerate(self.results)
            if step.slots[name].role in (Role.LOSS, Role.AUXILIARY)
        ]
        self._function, self._names = lowered.gradient, lowered.gradient_inputs
        self._strides = [value.stride() for value in batch]
        self._orders = [_memory_order(value) for value in batch] if is_open else []
        slots = [slot.name for slot in step.slots.values() if slot.role is Role.BATCH]
        wanted = {name: position for position, name in enumerate(slots)}
        self._inputs: list[Any] = []
        self.bind(state)
        self._places = [
            (place, wanted[name]) for place, name in enumerate(self._names) if name in wanted
        ]

    def bind(self, state: Mapping[str, torch.Tensor]) -> None:
        """Read the state where it lies now."""
        self._inputs = [state.get(name) for name in self._names]

    def prepare(self, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return a batch of the example's shapes laid out as the example."""
        if self._orders:
            return list(map(_laid_out, batch, self._orders))
        return [
            value
            if value.stride() == stride
            else value.new_empty_strided(value.shape, stride).copy_(value)
            for value, stride in zip(batch, self._strides, strict=True)
        ]

    def __call__(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run it on a prepared batch."""
        inputs = self._inputs
        for place, position in self._places:
            inputs[place] = batch[position].detach()
        # No input asks for a gradient, so none is recorded. Without grad mode oneDNN's LSTM would
        # keep nothing for the backward that stands in the graph.
        with torch.enable_grad():
            results: Sequence[torch.Tensor] = self._function(*inputs)
        for place, _ in self._places:
            inputs[place] = None
        return results

    def values(self, batch: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what it reads for a prepared batch, by slot."""
        named = dict(zip(self._names, self._inputs, strict=True))
        return named | {self._names[place]: batch[at].detach() for place, at in self._places}


def _memory_order(value: torch.Tensor) -> list[int]:
    """Return a tensor's dimensions from the slowest in memory to the fastest."""
    strides = value.stride()
    return sorted(range(value.dim()), key=lambda dim: -strides[dim])


def _laid_out(value: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Return a tensor as it is if it lies in memory in this order without gaps, or a copy."""
    if value.permute(order).is_contiguous():
        return value
    return torch.empty_permuted(value.shape, order, dtype=value.dtype, device=value.device).copy_(
        value
    )


class BoundWrites:
    """A graph that writes state in place, and reads state and results of a gradient graph.

    Args:
        function: the lowered graph.
        names: its inputs' slots in order.
        state: by slot.
        results: the gradient graph's slots in order.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        names: Sequence[str],
        state: Mapping[str, torch.Tensor],
        results: Sequence[str],
    ) -> None:
        self._function = function
        self._inputs: list[Any] = [state.get(name) for name in names]
        made = {name: place for place, name in enumerate(results)}
        self._passed = [
            (place, made[name]) for place, name in enumerate(names) if name not in state
        ]

    def __call__(self, results: Sequence[torch.Tensor] = ()) -> None:
        """Run it on what a gradient graph has returned."""
        inputs = self._inputs
        for place, position in self._passed:
            inputs[place] = results[position]
        with torch.no_grad():
            self._function(*inputs)
        for place, _ in self._passed:
            inputs[place] = None
