"""Average gradients over processes while backward runs, one bucket at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import fx

from mpcompile.step.collectives import finished, is_collective, started
from mpcompile.step.graph import StepGraph, call, placeholders, results, set_results
from mpcompile.step.loop import Loop
from mpcompile.step.slots import Role

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class ReduceInBackward:
    """Start the all-reduce of each bucket as soon as the last of its gradients is computed.

    Attributes:
        loop: says whether there are other processes. `passes.reduce_packed` averages instead if an
            update reads more than one backward, or if each process updates a slice.

    Example:
        >>> before_and_after(ReduceInBackward(among(2)), step_before("reduce_in_backward"))
        gradient
        + reshape_default  f16[12]  reshape t_3 [-1]
        + _to_copy_default  f32[12]  _to_copy reshape_default dtype=f32
        + all_reduce_default  f32[12]  all_reduce _to_copy_default sum all
        + wait_tensor_default  f32[12]  wait_tensor all_reduce_default
        + div_tensor  f32[12]  div wait_tensor_default 2
        + slice_tensor  f32[12]  slice div_tensor 0 0 12
        + view_default  f32[3,4]  view slice_tensor [3,4]
        - return  grad.w = t_3
        + return  grad.w = view_default
    """

    loop: Loop

    def __call__(self, step: StepGraph) -> int:
        """Return the number of buckets, or 0 if there is nothing left to average here.

        A bucket holds gradients of weights that the program reads one after another, the last ones
        first. Every process starts the buckets in this order, whatever the shapes of its batch, and
        waits for them at the end of the graph.
        """
        parallel = self.loop.parallel
        graph = step.gradient.graph
        if parallel is None or parallel.in_update(self.loop.accumulate):
            return 0
        if any(map(is_collective, graph.nodes)):
            return 0
        values = results(graph)
        order = {node: position for position, node in enumerate(graph.nodes)}
        buckets = list(_buckets(step, parallel.bucket_bytes, parallel.dtype.itemsize))
        sent: list[fx.Node] = []
        latest, before = -1, graph.output_node()
        for names in buckets:
            last = max((values[name] for name in names), key=order.__getitem__)
            if order[last] > latest:
                latest, before = order[last], last.next
            with graph.inserting_before(before):
                joined = _joined(graph, [values[name] for name in names])
                sent.append(started(graph, joined, parallel))
        with graph.inserting_before(graph.output_node()):
            for names, begun in zip(buckets, sent, strict=True):
                whole, start = finished(graph, begun, parallel), 0
                for name in names:
                    shape = step.slots[name].shape
                    part = call(graph, _ATEN.slice.Tensor, whole, 0, start, start + prod(shape))
                    start += prod(shape)
                    values[name] = call(graph, _ATEN.view.default, part, list(shape))
                    step.slots[name] = replace(step.slots[name], dtype=parallel.dtype)
        set_results(graph, values)
        return len(buckets)


def _buckets(step: StepGraph, limit: int, itemsize: int) -> Iterator[list[str]]:
    """Yield the gradients' slots in buckets; the weights that are read last come first."""
    names = [
        f"grad.{name}"
        for name in dict.fromkeys(
            weight
            for slot in placeholders(step.gradient.graph)
            if step.slots[slot].role in (Role.MASTER, Role.WORKING)
            for weight in step.members(slot)
        )
    ]
    assert set(names) == {name for name, s in step.slots.items() if s.role is Role.GRADIENT}
    bucket: list[str] = []
    filled = 0
    for name in reversed(names):
        bucket.append(name)
        filled += prod(step.slots[name].shape) * itemsize
        if filled >= limit:
            yield bucket
            bucket, filled = [], 0
    if bucket:
        yield bucket


def _joined(graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
    """Return some gradients one after another; in FP32 if one of them is."""
    flat = [call(graph, _ATEN.reshape.default, node, [-1]) for node in nodes]
    if len({node.meta["val"].dtype for node in flat}) > 1:
        flat = [
            node
            if node.meta["val"].dtype is torch.float32
            else call(graph, _ATEN._to_copy.default, node, dtype=torch.float32)
            for node in flat
        ]
    return flat[0] if len(flat) == 1 else call(graph, _ATEN.cat.default, flat)
