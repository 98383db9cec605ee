"""The gradient graphs of one step, one for each shape of batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from mpcompile.batch_size import BatchSize, size_of
from mpcompile.bound_graphs import BoundGradient
from mpcompile.cuda_graph import CapturedStep, Step
from mpcompile.errors import BadInput
from mpcompile.nest import Nest
from mpcompile.step import Role, StepGraph

_log = logging.getLogger("mpcompile")

_Shapes: TypeAlias = tuple[tuple[int | str, ...], ...]


@dataclass(frozen=True)
class BatchGraph:
    """What runs for batches of one shape, or of one shape but for the batch size.

    Attributes:
        step: the step graph; its update is that of all.
        gradient: its gradient graph on the step's state.
        returns: what the caller gets, if that is more than the loss.
        size: the batch size that it leaves open, or None.
        run: runs the gradient graph and what follows it.
    """

    step: StepGraph
    gradient: BoundGradient
    returns: Nest | None
    size: BatchSize | None
    run: Step


class BatchGraphs:
    """All graphs of a step: that of the example batch, and others as their shapes come.

    Args:
        first: of the example batch.
        batch: the example.
        another: makes one for a batch of other shapes; told whether to leave its size open.
    """

    def __init__(
        self,
        first: BatchGraph,
        batch: Sequence[torch.Tensor],
        another: Callable[[tuple[torch.Tensor, ...], bool], BatchGraph],
    ) -> None:
        self._slots = [slot for slot in first.step.slots.values() if slot.role is Role.BATCH]
        self._devices = [value.device for value in batch]
        self._places = first.size.places if first.size else ()
        self._graphs = {self._open_key(batch) or _key(batch): first}
        self._another = another

    def __len__(self) -> int:
        """Count the graphs made so far."""
        return len(self._graphs)

    def bind(self, state: Mapping[str, torch.Tensor]) -> None:
        """Let all graphs read the state where it lies now."""
        for graph in self._graphs.values():
            graph.gradient.bind(state)
            if isinstance(graph.run, CapturedStep):
                graph.run.forget()

    def __call__(self, batch: Sequence[torch.Tensor]) -> BatchGraph:
        """Return the graph for a batch; raise BadInput if none can be for it."""
        self._check(batch)
        wanted = self._open_key(batch)
        if wanted is not None:
            found = self._graphs.get(wanted)
            if found is None:
                return self._make(wanted, batch, True)
            if found.size is not None and found.size.admits(size_of(batch, self._places) or 0):
                return found
        key = _key(batch)
        return self._graphs.get(key) or self._make(key, batch, False)

    def _make(self, key: _Shapes, batch: Sequence[torch.Tensor], leave_open: bool) -> BatchGraph:
        made = self._graphs[key] = self._another(tuple(batch), leave_open)
        shapes = ", ".join(f"[{', '.join(map(str, shape))}]" for shape in key)
        _log.info("graph %d of the step: batches of shapes %s", len(self._graphs), shapes)
        return made

    def _open_key(self, batch: Sequence[torch.Tensor]) -> _Shapes | None:
        """Return a batch's shapes but for the size that is left open; None if it has none."""
        if not self._places or size_of(batch, self._places) is None:
            return None
        return tuple(
            ("any", *value.shape[1:]) if is_open else tuple(value.shape)
            for value, is_open in zip(batch, self._places, strict=True)
        )

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


def _key(batch: Sequence[torch.Tensor]) -> _Shapes:
    return tuple(tuple(value.shape) for value in batch)
