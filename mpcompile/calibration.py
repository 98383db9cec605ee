"""Run a workload in FP32 on real batches and measure every tensor, forward and backward."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import fx

from mpcompile.border_rows import is_full
from mpcompile.describe import dataflow
from mpcompile.errors import BadInput
from mpcompile.fingerprint import graph_of
from mpcompile.policy import FULL_PRECISION
from mpcompile.ranges import Range, Ranges, join
from mpcompile.torch_graph import Forward, Input, Kind, capture
from mpcompile.workload import Workload


def calibrate(workload: Workload, batches: int = 8) -> Ranges:
    """Measure what the tensors of a program hold.

    Weights stay as they are, so that all batches meet the same ones; buffers that forward updates
    go from batch to batch, and neither they nor the random-number generators are changed.

    Args:
        workload: its ``data`` gives the batches; without data the example batch is the only one.
        batches: the most batches to run.

    Raises:
        BadInput: no batch, or one whose shapes are not those of the example.
        CannotCapture: see `mpcompile.compile`.
    """
    if batches < 1:
        raise BadInput(f"batches is {batches}", "", "give at least 1")
    forward = capture(workload)
    data = [workload.batch] if workload.data is None else islice(iter(workload.data), batches)
    state = {
        item.name: item.tensor.detach().clone()
        for item in forward.inputs
        if item.kind is not Kind.BATCH
    }
    devices = sorted({item.tensor.device.index or 0 for item in forward.inputs if _on_cuda(item)})
    values: list[dict[str, Range]] = []
    gradients: list[dict[str, Range]] = []
    with torch.random.fork_rng(devices=devices):
        for batch in data:
            meter = _Meter(forward.module)
            given = _inputs(forward, state, tuple(batch), workload.origin)
            with torch.enable_grad():
                *written, result = meter.run(*given, enable_io_processing=False)
            if workload.loss is not None:
                parameters = [value for value in given if value.requires_grad]
                torch.autograd.grad(result, parameters, allow_unused=True)
            state |= {
                name: value.detach() for name, value in zip(forward.written, written, strict=False)
            }
            values.append(meter.values)
            gradients.append(meter.gradients)
    if not values:
        raise BadInput("the workload's data gave no batch", workload.origin, "make it iterable")
    flow = dataflow(forward.module, {}, FULL_PRECISION)
    return Ranges(graph_of(flow).fingerprint, len(values), join(values), join(gradients))


def _on_cuda(item: Input) -> bool:
    return item.tensor.device.type == "cuda"


def _inputs(
    forward: Forward, state: dict[str, torch.Tensor], batch: tuple[Any, ...], origin: str
) -> list[torch.Tensor]:
    """Return the forward graph's inputs for one batch."""
    given: list[torch.Tensor] = []
    for item in forward.inputs:
        if item.kind is not Kind.BATCH:
            # Without the hooks of the batch before.
            fresh = state[item.name].detach()
            given.append(fresh.requires_grad_(item.kind is Kind.PARAMETER))
            continue
        place = int(item.name.removeprefix("batch."))
        value = batch[place] if place < len(batch) else None
        if not isinstance(value, torch.Tensor) or value.shape != item.tensor.shape:
            raise BadInput(
                f"a batch of the data does not have the shapes of the example ({item.name})",
                origin,
                "drop the last, smaller batch",
            )
        given.append(value.to(item.tensor.device))
    return given


class _Meter(fx.Interpreter):
    """Runs a graph and measures each FP32 tensor, and its gradient when backward gets there."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Range] = {}
        self.gradients: dict[str, Range] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, measure its result and ask autograd for its gradient."""
        result = super().run_node(n)
        if is_full(n) and isinstance(result, torch.Tensor):
            self.values[n.name] = Range.of(result)
            if result.requires_grad:

                def note(gradient: torch.Tensor, name: str = n.name) -> None:
                    self.gradients[name] = Range.of(gradient)

                result.register_hook(note)
        return result
