"""What `torch.export` traces: the loss of a model on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpcompile.errors import CannotCapture
from mpcompile.program.derivatives.noted import Noted
from mpcompile.program.numbers.inputs import (
    NumberPlace,
    Recorded,
    Recording,
    in_place,
    unused_inputs,
)
from mpcompile.program.stack_lines import line_now
from mpcompile.program.workload import Workload
from mpcompile.torch_private.own_derivatives import own_tensors
from mpcompile.torch_private.tracing import leaves_of


class LastRun:
    """Holds a recording: an export puts back what a program sets on itself and on its lists."""

    recording: Recording | None = None


class TracedProgram(torch.nn.Module):
    """The model under one name, so that its parameters' dotted names stay its own.

    Attributes:
        noted: the derivatives that the program writes itself.
        last: what the last run did with the numbers that are inputs.
        examples: the inputs for these numbers, behind the batch.

    Args:
        workload: the program.
        numbers: the places of the Python numbers that become inputs.
    """

    def __init__(self, workload: Workload, numbers: Sequence[NumberPlace] = ()) -> None:
        super().__init__()
        self.last = LastRun()
        self._numbers = tuple(numbers)
        self.examples = unused_inputs(workload.model) if numbers else ()
        self.model = workload.model
        self._loss = workload.loss
        self._parameters_of_user = dict(workload.model.named_parameters())
        self.noted = Noted(line_now)

    def forward(self, *batch: Any) -> Any:
        """Return the results of the program; behind the batch are the `examples`."""
        if not self._numbers:
            return self._run(batch)
        batch, inputs = batch[: -len(self.examples)], batch[-len(self.examples) :]
        present = {place.name: place.number() for place in self._numbers}
        recording = self.last.recording = Recording(present, inputs)
        with in_place(self._numbers, recording):
            result = self._run(batch)
        if self.noted.own:
            recording.refuse("changes, and the program writes derivatives or hooks itself")
        for leaf in leaves_of(result):
            if type(leaf) is Recorded:
                leaf.refuse("is returned beside the loss")
        if recording.refused is not None:
            raise recording.refused
        return result

    def _run(self, batch: Sequence[Any]) -> Any:
        buffers = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in own_tensors(module)[1].items()
        ]
        if self._loss is None:
            result = self.model(*batch)
        else:
            with self.noted.noting(self.model):
                self.noted.hook_parameters(
                    self._parameters_of_user, dict(self.model.named_parameters())
                )
                result = self._loss(self.model, *batch)
        _write_replaced(buffers)
        return result


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
