"""One launch per step: the whole training step captured as a CUDA graph, then replayed.

A step reads nothing back from the device, and its state stays where it is, so gradient and update
graph fit into one CUDA graph (``torch.cuda.CUDAGraph``). Values that change between steps are in
tensors that the graph reads: the batch in its own copies; learning rates, scale and counters in the
step's state; random numbers in the generator, whose offset each replay advances.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import fx

from mpcompile.program.control_flow import is_control_flow
from mpcompile.program.marks import WHERE
from mpcompile.step.collectives import is_collective
from mpcompile.torch_private.ops import op_name

WARM_UP = 3
"""The number of steps before the capture, in which kernels are compiled, chosen and loaded."""

_WAITING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

Step: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
_log = logging.getLogger("mpcompile")


def obstacle(*graphs: fx.Graph) -> str:
    """Return why the graphs cannot be captured: the host must wait for a node; "" if they can."""
    for graph in graphs:
        for node in graph.nodes:
            tags = getattr(node.target, "tags", ())
            if is_collective(node):
                return f"{op_name(node)} communicates with other processes"
            if any(tag in tags for tag in _WAITING) or is_control_flow(node):
                where = WHERE.get(node)
                at = f" at {where.at}" if where and where.at else ""
                return f"{op_name(node)}{at} makes the host wait for a value"
    return ""


class CapturedStep:
    """A training step that is replayed as one CUDA graph after `WARM_UP` plain steps.

    A capture runs no kernel, so a step that cannot be captured loses nothing: it runs as before,
    and the log ``mpcompile`` says so once.

    Args:
        run: one step: takes the batch, returns the loss and the tensors beside it; all other
            tensors that it reads and writes stay in place.
        obstacle: why it must not be captured, or "".
        shapes: shapes of the batches that are replayed; batches of other shapes run plainly.
    """

    def __init__(
        self, run: Step, obstacle: str = "", shapes: list[torch.Size] | None = None
    ) -> None:
        self._run = run
        self._shapes = shapes
        self._left = WARM_UP
        self._plain = False
        self._graph: Any = None
        self._batch: list[torch.Tensor] = []
        self._results: Sequence[torch.Tensor] = []
        if obstacle:
            self._run_plainly(obstacle)

    def __call__(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run one step; its results share no memory with the graph."""
        if self._shapes is not None and [value.shape for value in batch] != self._shapes:
            return self._run(batch)
        if self._plain or self._left:
            self._left = max(0, self._left - 1)
            return self._run(batch)
        if self._graph is None:
            self._capture(batch)
            if self._plain:
                return self._run(batch)
        for copy, value in zip(self._batch, batch, strict=True):
            copy.copy_(value, non_blocking=True)
        self._graph.replay()
        return [value.clone() for value in self._results]

    def forget(self) -> None:
        """Capture again at the next call, because the tensors that the graph reads have moved."""
        self._graph = None

    def _capture(self, batch: Sequence[torch.Tensor]) -> None:
        cuda = torch.cuda
        stream: Any = cuda.current_stream()
        generator: Any = cuda.default_generators[stream.device.index]
        drawn = generator.clone_state()
        graph: Any = cuda.CUDAGraph()
        self._batch = [value.clone() for value in batch]
        try:
            # Other threads (a data loader that pins memory) may run meanwhile.
            with cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._run(self._batch)
        except RuntimeError as error:
            # A failed capture leaves its stream current and the generator recording.
            cuda.set_stream(stream)
            generator.graphsafe_set_state(drawn)
            self._batch = []
            with suppress(RuntimeError):
                graph.reset()
            self._run_plainly(str(error).partition("\n")[0])
        else:
            self._graph = graph

    def _run_plainly(self, why: str) -> None:
        self._plain = True
        _log.warning("the step is not replayed as a CUDA graph: %s", why)
