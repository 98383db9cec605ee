"""Average running statistics over the processes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import fx

from mpcompile.program.marks import AVERAGED
from mpcompile.step.collectives import mean
from mpcompile.step.graph import StepGraph, add_input, call, placeholders, results, set_results
from mpcompile.step.loop import Loop
from mpcompile.step.processes import DataParallel
from mpcompile.step.slots import Role

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class AverageBuffers:
    """Average the next values of floating-point buffers, so that all processes hold the same.

    Attributes:
        loop: says whether there are other processes.

    Example:
        >>> step = step_before("average_buffers", before=nn.BatchNorm1d(4, affine=False))
        >>> before_and_after(AverageBuffers(among(2)), step)
        update
        + reshape_default_1  f32[4]  reshape next_before_running_mean [-1]
        + reshape_default_2  f32[4]  reshape next_before_running_var [-1]
        + cat_default_1  f32[8]  cat [reshape_default_1,reshape_default_2]
        + all_reduce_default  f32[8]  all_reduce cat_default_1 sum all
        + wait_tensor_default  f32[8]  wait_tensor all_reduce_default
        + div_tensor  f32[8]  div wait_tensor_default 2
        + slice_tensor  f32[4]  slice div_tensor 0 0 4
        + view_default  f32[4]  view slice_tensor [4]
        + slice_tensor_1  f32[4]  slice div_tensor 0 4 8
        + view_default_1  f32[4]  view slice_tensor_1 [4]
        - return  before.running_mean = next_before_running_mean
        - return  before.running_var = next_before_running_var
        + return  before.running_mean = view_default
        + return  before.running_var = view_default_1
    """

    loop: Loop

    def __call__(self, step: StepGraph) -> int:
        """Return the number of buffers averaged, or 0 if there is nothing to do."""
        parallel, graph = self.loop.parallel, step.update.graph
        if parallel is None or any(node in AVERAGED for node in graph.nodes):
            return 0
        values = results(graph)
        names = [
            name.removeprefix("next.")
            for name, slot in step.slots.items()
            if slot.role is Role.UPDATED and slot.dtype.is_floating_point
        ]
        inputs = placeholders(graph)
        for name in names:  # micro-batches have written these buffers in place
            if name not in values:
                like = next(iter(inputs.values()))
                values[name] = inputs.get(name) or add_input(graph, step.slots[name], like)
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            for _, run in groupby(sorted(names, key=lambda n: str(step.slots[n].dtype)),
                                  key=lambda n: step.slots[n].dtype):  # fmt: skip
                same = list(run)
                averaged = _averaged(graph, [values[name] for name in same], parallel)
                values |= zip(same, averaged, strict=True)
        set_results(graph, values)
        return len(names)


def _averaged(graph: fx.Graph, nodes: list[fx.Node], parallel: DataParallel) -> list[fx.Node]:
    """Average some tensors of one dtype as one."""
    flat = [call(graph, _ATEN.reshape.default, node, [-1]) for node in nodes]
    whole = flat[0] if len(flat) == 1 else call(graph, _ATEN.cat.default, flat)
    whole, start, made = mean(graph, whole, parallel), 0, []
    for node in nodes:
        shape = tuple(node.meta["val"].shape)
        part = call(graph, _ATEN.slice.Tensor, whole, 0, start, start + prod(shape))
        start += prod(shape)
        made.append(call(graph, _ATEN.view.default, part, list(shape)))
        AVERAGED[made[-1]] = True
    return made
