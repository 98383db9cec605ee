"""The transformed and lowered programs that a step has used: to go back to one is only to bind it.

A layout of the weights changes when weights are frozen and trained again, back and forth. What was
made for an earlier layout depends on no tensor's place in memory, so it is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import torch

from mpcompile.lower.lower import Lowered, Lowering, lower
from mpcompile.program.batch import structure_of
from mpcompile.program.batch_size import size_of
from mpcompile.step.optimizer_options import constants_of, guards_hold
from mpcompile.step.optimizer_start import progress_of
from mpcompile.step.transformed import Transformed

MOST_PROGRAMS = 32
"""So many programs are kept; those not used for longest are dropped."""

Transforms: TypeAlias = Callable[[Sequence[torch.Tensor], tuple[bool, ...]], Transformed]
"""Transforms the program as it is now for a batch; the flags say which tensors have an open batch
size."""


class Program:
    """A transformed program, lowered when that is needed first.

    Args:
        transformed: the program.
        device: the device of the model.
        lowering: how graphs are run.
    """

    def __init__(self, transformed: Transformed, device: torch.device, lowering: Lowering) -> None:
        self.transformed, self._device, self._lowering = transformed, device, lowering

    @cached_property
    def lowered(self) -> Lowered:
        """Its graphs as callables."""
        assert self.transformed.step is not None
        return lower(self.transformed.step, self._device, self._lowering)


class Programs:
    """All programs that are kept, by what they were made from.

    Args:
        first: the program for the example batch.
        situation: what the program was then.
        lowering: how graphs are run.
        for_batch: transforms the program again.
        numbers: returns the present values of the numbers that are inputs.
    """

    def __init__(
        self,
        first: Transformed,
        situation: Hashable,
        lowering: Lowering,
        for_batch: Transforms,
        numbers: Callable[[], Mapping[str, float]],
    ) -> None:
        workload = first.workload
        assert workload.optimizer is not None
        self._optimizer, self._model = workload.optimizer, workload.model
        self._device = next(iter(workload.model.parameters())).device
        self._lowering, self._for_batch, self._numbers = lowering, for_batch, numbers
        self.first = Program(first, self._device, lowering)
        self._any_shapes = first.forward.in_pieces is not None
        size = first.forward.batch_size
        key = self._key(workload.batch, size.open_dims if size else (), situation)
        self._kept = OrderedDict({key: self.first})

    def __len__(self) -> int:
        """Count the programs that are kept."""
        return len(self._kept)

    def get(
        self, batch: Sequence[torch.Tensor], is_open: tuple[bool, ...], situation: Hashable
    ) -> Program:
        """Return the program as it is now for a batch; it is transformed if none is kept for it.

        Args:
            batch: the batch.
            is_open: per tensor whether its batch size is open.
            situation: what the program is now.
        """
        key = self._key(batch, is_open, situation)
        found = self._kept.get(key)
        if found is None or not self._fits(found, batch):
            found = Program(self._for_batch(batch, is_open), self._device, self._lowering)
            self._kept[key] = found
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_PROGRAMS:
            self._kept.popitem(last=False)
        return found

    def _fits(self, program: Program, batch: Sequence[torch.Tensor]) -> bool:
        """Whether a program was traced for such options, and admits batch size and numbers."""
        step, limit = program.transformed.step, program.transformed.forward.batch_size
        size = size_of(batch, limit.open_dims) if limit else None
        admitted = limit is None or (size is not None and limit.admits(size))
        numbers = program.transformed.forward.numbers
        if numbers is not None and numbers.guards:
            admitted = admitted and numbers.admits(self._numbers())
        return admitted and step is not None and guards_hold(self._optimizer, step.guards)

    def _key(
        self, batch: Sequence[torch.Tensor], is_open: tuple[bool, ...], situation: Hashable
    ) -> Hashable:
        """Return all that a program is made from.

        Weights of which one was frozen for a time have taken other numbers of steps, and are not
        updated together.
        """
        sizes = is_open if is_open and size_of(batch, is_open) is not None else [False] * len(batch)
        shapes: Hashable = tuple(
            (tuple(value.shape[is_any:]), is_any, value.stride(), value.dtype)
            for value, is_any in zip(batch, sizes, strict=True)
        )
        trained = {
            str(index): value
            for index, value in enumerate(
                value for group in self._optimizer.param_groups for value in group["params"]
            )
        }
        progress = list(progress_of(self._optimizer, trained).values())
        together = tuple(progress.index(each) for each in progress)
        of_batch = len(batch) if self._any_shapes else (structure_of(batch), shapes)
        return (
            of_batch,
            is_open,
            situation,
            together,
            constants_of(self._optimizer),
        )
