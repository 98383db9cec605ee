"""The module that `torch.export` sees: a model, its loss, and what they do beside their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mpcompile.errors import CannotCapture
from mpcompile.program.derivatives.noted import Noted
from mpcompile.program.returned import Spot
from mpcompile.program.stack_lines import line_now
from mpcompile.program.workload import Workload
from mpcompile.torch_private.own_derivatives import own_tensors


class Watch(Protocol):
    """Finds the tensors that a run of the program puts into the user's objects."""

    def around(self) -> AbstractContextManager[None]:
        """Return a context for one capture; it puts back what the program has changed."""

    def begin(self) -> Callable[[], list[tuple[Spot, Any]]]:
        """Look at the places before the program runs; the function it returns tells what changed.

        Returns:
            A function that returns each place and its new value, which is made of tensors.
        """


@dataclass(slots=True)
class LeftSpots:
    """Where one run of the program has left tensors.

    `torch.export` puts back the attributes of modules, and not what an object holds.

    Attributes:
        spots: the places.
    """

    spots: tuple[Spot, ...] = ()


class TracedProgram(torch.nn.Module):
    """The model under one name, so that its parameters' dotted names stay its own.

    Attributes:
        noted: the derivatives that the program writes itself.
        left: where it has left tensors; they are the last element of its results.
    """

    def __init__(self, workload: Workload, watch: Watch | None = None) -> None:
        super().__init__()
        self.model = workload.model
        self._loss = workload.loss
        self._parameters_of_user = dict(workload.model.named_parameters())
        self.noted = Noted(line_now)
        self.left = LeftSpots()
        self._watch = watch

    def forward(self, *batch: Any) -> Any:
        """Run the program; tensors that it has left elsewhere follow its results."""
        buffers = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in own_tensors(module)[1].items()
        ]
        watched = self._watch.begin() if self._watch else list
        if self._loss is None:
            result = self.model(*batch)
        else:
            with self.noted.noting(self.model):
                self.noted.hook_parameters(
                    self._parameters_of_user, dict(self.model.named_parameters())
                )
                result = self._loss(self.model, *batch)
        _write_replaced(buffers)
        left = watched()
        self.left.spots = tuple(spot for spot, _ in left)
        return (result, [value for _, value in left]) if left else result


def _write_replaced(buffers: Sequence[tuple[torch.nn.Module, str, torch.Tensor | None]]) -> None:
    """Write the tensors that the program has put in place of buffers into the buffers.

    `torch.export` drops such an assignment inside a module of a module (torch 2.13 to 2.15).
    """
    for module, name, before in buffers:
        current = own_tensors(module)[1]
        now = current.get(name)
        if now is before:
            continue
        if before is None or now is None or (now.shape, now.dtype) != (before.shape, before.dtype):
            raise CannotCapture(
                f"the program replaces the buffer {name} by a tensor of another shape or dtype",
                fix="keep its shape and dtype, or write to a part of a larger buffer",
            )
        with torch.no_grad():
            before.copy_(now)
        current[name] = before
