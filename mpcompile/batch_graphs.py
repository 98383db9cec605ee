"""The gradient graphs of one step, one for each shape of batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mpcompile.bound_graphs import BoundGradient
from mpcompile.cuda_graph import CapturedStep, Step
from mpcompile.errors import BadInput
from mpcompile.nest import Nest
from mpcompile.step import Role, StepGraph

_log = logging.getLogger("mpcompile")


@dataclass(frozen=True)
class BatchGraph:
    """What runs for batches of one shape.

    Attributes:
        step: the step graph; its update is that of all.
        gradient: its gradient graph on the step's state.
        returns: what the caller gets, if that is more than the loss.
        run: runs the gradient graph and what follows it.
    """

    step: StepGraph
    gradient: BoundGradient
    returns: Nest | None
    run: Step


class BatchGraphs:
    """All graphs of a step: that of the example batch, and others as their shapes come.

    Args:
        first: of the example batch.
        batch: the example.
        another: makes one for a batch of other shapes.
    """

    def __init__(
        self,
        first: BatchGraph,
        batch: Sequence[torch.Tensor],
        another: Callable[[tuple[torch.Tensor, ...]], BatchGraph],
    ) -> None:
        self._slots = [slot for slot in first.step.slots.values() if slot.role is Role.BATCH]
        self._devices = [value.device for value in batch]
        self._graphs = {tuple(value.shape for value in batch): first}
        self._another = another

    def bind(self, state: Mapping[str, torch.Tensor]) -> None:
        """Let all graphs read the state where it lies now."""
        for graph in self._graphs.values():
            graph.gradient.bind(state)
            if isinstance(graph.run, CapturedStep):
                graph.run.forget()

    def __call__(self, batch: Sequence[torch.Tensor]) -> BatchGraph:
        """Return the graph for a batch; raise BadInput if none can be for it."""
        self._check(batch)
        key = tuple(value.shape for value in batch)
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = self._another(tuple(batch))
            shapes = ", ".join(str(list(shape)) for shape in key)
            _log.info("graph %d of the step: batches of shapes %s", len(self._graphs), shapes)
        return found

    def _check(self, batch: Sequence[torch.Tensor]) -> None:
        if len(batch) != len(self._slots):
            raise BadInput(
                f"the step was called with {len(batch)} tensors",
                "",
                f"give {len(self._slots)}, as in the example batch",
            )
        for value, slot, device in zip(batch, self._slots, self._devices, strict=True):
            if value.device != device:
                raise BadInput(
                    f"{slot.name} is on {value.device}, the example batch was on {device}",
                    "",
                    f"move it there, for example {slot.name}.to({str(device)!r})",
                )
            if value.dim() != len(slot.shape) or value.dtype is not slot.dtype:
                raise BadInput(
                    f"{slot.name} is {str(value.dtype).removeprefix('torch.')}"
                    f"{list(value.shape)}, the step was compiled for "
                    f"{str(slot.dtype).removeprefix('torch.')}{list(slot.shape)}",
                    "",
                    "give as many dimensions and the dtype of the example batch",
                )
