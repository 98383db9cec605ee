"""What `torch.export` traces: the loss of a model on a batch, and what it leaves elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from mpcompile.errors import ReplacedBuffer
from mpcompile.program.derivatives.noted import Noted
from mpcompile.program.numbers.inputs import (
    NumberPlace,
    Recorded,
    Recording,
    in_place,
    unused_inputs,
)
from mpcompile.program.returned import Spot
from mpcompile.program.stack_lines import line_now
from mpcompile.program.tracing.ctc import ctc_as_one_op
from mpcompile.program.tracing.inner_gradients import ComputesGradients, RecordedProgram
from mpcompile.program.tracing.packed_sequences import packed_as_padded
from mpcompile.program.tracing.value_checks import without_value_checks
from mpcompile.program.workload import Workload
from mpcompile.torch_private.own_derivatives import own_tensors
from mpcompile.torch_private.tracing import leaves_of, without_backward


class Watch(Protocol):
    """Finds the tensors that a run of the program puts into the user's objects."""

    def around(self) -> AbstractContextManager[None]:
        """Return a context for one capture; it puts back what the program has changed."""

    def begin(self) -> Callable[[], list[tuple[Spot, Any]]]:
        """Look at the places before the program runs; the function it returns tells what changed.

        Returns:
            A function that returns each place and its new value, which is made of tensors.
        """


class LastRun:
    """What one run has shown: an export puts back what a program sets on itself and on its lists.

    Attributes:
        recording: what it did with the numbers that are inputs.
        spots: where it has left tensors; they are the last element of its results.
    """

    recording: Recording | None = None
    spots: tuple[Spot, ...] = ()


class TracedProgram(torch.nn.Module):
    """The model under one name, so that its parameters' dotted names stay its own.

    Attributes:
        noted: the derivatives that the program writes itself.
        last: what the last run has shown.
        examples: the inputs for these numbers, behind the batch.

    Args:
        workload: the program.
        numbers: the places of the Python numbers that become inputs.
        watch: finds the tensors that the program puts into the user's objects.
        recorded: the program as a graph, which runs instead.
    """

    def __init__(
        self,
        workload: Workload,
        numbers: Sequence[NumberPlace] = (),
        watch: Watch | None = None,
        recorded: RecordedProgram | None = None,
    ) -> None:
        super().__init__()
        self._recorded = recorded
        self.last = LastRun()
        self._numbers, self._watch = tuple(numbers), watch
        self.examples = unused_inputs(workload.model) if numbers else ()
        self.model = workload.model
        self._workload = workload
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
        watched = self._watch.begin() if self._watch else list
        if self._workload.loss is None:
            with _stand_ins():
                result = self._workload.run(self.model, batch)
        else:
            with self.noted.noting(self.model), _stand_ins():
                self.noted.hook_parameters(
                    self._parameters_of_user, dict(self.model.named_parameters())
                )
                if self._recorded is not None:
                    result = self._recorded(self.model, batch)
                else:
                    with without_backward(ComputesGradients()):
                        result = self._workload.run(self.model, batch)
        _write_replaced(buffers)
        left = watched()
        self.last.spots = tuple(spot for spot, _ in left)
        return (result, [value for _, value in left]) if left else result


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let functions that cannot be traced be others inside ``with``."""
    with without_value_checks(), ctc_as_one_op(), packed_as_padded():
        yield


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
            raise ReplacedBuffer(
                f"the program replaces the buffer {name} by a tensor of another shape or dtype",
                fix="keep its shape and dtype, or write to a part of a larger buffer",
            )
        with torch.no_grad():
            before.copy_(now)
        current[name] = before
