"""Lowered graphs bound to a step's state: a call passes only the batch and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpcompile.lower.lower import Lowered
from mpcompile.program.batch import laid_out
from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import Role


class BoundGradient:
    """A gradient graph bound to a step's state, for batches of one shape.

    Attributes:
        results: the slots of its results, the loss first.
        returned: the indices in `results` of the loss and of the caller's other results.
        any_shapes: whether it takes batches of any shapes, because it is a program in pieces.

    Args:
        step: the step graph.
        lowered: the same step, lowered.
        state: the tensors by slot.
        batch: an example, which gives strides.
        is_open: whether a batch may have another batch size than the example.
        given: returns the tensors for a program in pieces, which takes any shapes and layouts.
    """

    def __init__(
        self,
        step: StepGraph,
        lowered: Lowered,
        state: Mapping[str, torch.Tensor],
        batch: Sequence[torch.Tensor],
        is_open: bool = False,
        given: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]] | None = None,
    ) -> None:
        self._given, self.any_shapes = given, given is not None
        self.results = lowered.gradient_results
        self.returned = [
            index
            for index, name in enumerate(self.results)
            if step.slots[name].role in (Role.LOSS, Role.AUXILIARY)
        ]
        self._function, self._names = lowered.gradient, lowered.gradient_inputs
        self._strides = [value.stride() for value in batch]
        self._orders = [_memory_order(value) for value in batch] if is_open else []
        slots = [slot.name for slot in step.slots.values() if slot.role is Role.BATCH]
        in_batch = {name: index for index, name in enumerate(slots)}
        self._inputs: list[Any] = []
        self._state = state
        # No input requires a gradient, so autograd records nothing. Without grad mode oneDNN's LSTM
        # would not keep the tensors that the backward ops of the graph read.
        self._mode = torch.enable_grad()
        self.bind()
        self._batch_inputs = [
            (index, in_batch[name]) for index, name in enumerate(self._names) if name in in_batch
        ]

    def bind(self) -> None:
        """Read the state at its present storage."""
        self._inputs = [self._state.get(name) for name in self._names]

    def prepare(self, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return a batch in the memory layout of the example."""
        if self._given is not None:
            return self._given(batch)
        if self._orders:
            return list(map(_laid_out, batch, self._orders))
        return list(map(laid_out, batch, self._strides))

    def __call__(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run the graph on a prepared batch."""
        inputs = self._inputs
        for index, in_batch in self._batch_inputs:
            inputs[index] = batch[in_batch].detach()
        with self._mode:
            results: Sequence[torch.Tensor] = self._function(*inputs)
        for index, _ in self._batch_inputs:
            inputs[index] = None
        return results

    def values(self, batch: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the graph's inputs for a prepared batch, by slot."""
        named = dict(zip(self._names, self._inputs, strict=True))
        return named | {
            self._names[index]: batch[in_batch].detach() for index, in_batch in self._batch_inputs
        }


def _memory_order(value: torch.Tensor) -> list[int]:
    """Return a tensor's dimensions from the slowest in memory to the fastest."""
    strides = value.stride()
    return sorted(range(value.dim()), key=lambda dim: -strides[dim])


def _laid_out(value: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Return the tensor if its memory has this order without gaps, otherwise a copy that has."""
    if value.permute(order).is_contiguous():
        return value
    return torch.empty_permuted(value.shape, order, dtype=value.dtype, device=value.device).copy_(
        value
    )


class BoundWrites:
    """A graph that reads state and the results of a gradient graph, and writes state in place.

    Args:
        function: the lowered graph.
        names: the slots of its inputs, in order.
        state: the tensors by slot.
        results: the slots of the gradient graph's results, in order.
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
        made = {name: index for index, name in enumerate(results)}
        passed = [(index, made[name]) for index, name in enumerate(names) if name not in state]
        self._passed = _runs(passed)
        self._nothing = [[None] * (last - first) for first, last, _, _ in self._passed]
        self._mode = torch.no_grad()

    def __call__(self, results: Sequence[torch.Tensor] = ()) -> None:
        """Run the graph on the results of a gradient graph."""
        inputs = self._inputs
        for first, last, start, end in self._passed:
            inputs[first:last] = results[start:end]
        with self._mode:
            self._function(*inputs)
        for (first, last, _, _), nothing in zip(self._passed, self._nothing, strict=True):
            inputs[first:last] = nothing


def _runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Join pairs of indices into ranges: many gradients are handed over as one slice."""
    runs: list[tuple[int, int, int, int]] = []
    for index, place in pairs:
        if runs and runs[-1][1] == index and runs[-1][3] == place:
            first, _, start, _ = runs.pop()
            runs.append((first, index + 1, start, place + 1))
        else:
            runs.append((index, index + 1, place, place + 1))
    return runs
