"""Average packed gradients over processes in the update graph; each gets the part it updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcompile.program.marks import PACKED
from mpcompile.step.collectives import finished, is_collective, started
from mpcompile.step.graph import StepGraph, call
from mpcompile.step.loop import Loop


@dataclass(frozen=True)
class ReducePacked:
    """Average the gradients of `passes.pack_gradients` and `passes.accumulate_gradients`.

    Attributes:
        loop: says whether there are other processes. Gradients that `passes.reduce_in_backward` has
            averaged are left alone.

    Example:
        >>> loop = among(2, shard=True)
        >>> before_and_after(ReducePacked(loop), step_before("reduce_packed", loop))
        update
        + reduce_scatter_tensor_default  f32[32]  reduce_scatter_tensor _to_copy_default_1 sum 2
            all
        + wait_tensor_default  f32[32]  wait_tensor reduce_scatter_tensor_default
        + div_tensor  f32[32]  div wait_tensor_default 2
        - add  f32[32]  add arena0_master _to_copy_default_1 alpha=neg
        + add  f32[32]  add arena0_master div_tensor alpha=neg
    """

    loop: Loop

    def __call__(self, step: StepGraph) -> int:
        """Return the number of arenas averaged, or 0 if there is nothing to average here."""
        parallel, graph = self.loop.parallel, step.update.graph
        if parallel is None or not parallel.in_update(self.loop.accumulate):
            return 0
        packed = [node for node in graph.nodes if node in PACKED]
        if any(map(is_collective, graph.nodes)):
            return 0
        readers = {node: list(node.users) for node in packed}
        with graph.inserting_before(packed[-1].next):
            sent = [started(graph, node, parallel) for node in packed]
            for node, begun in zip(packed, sent, strict=True):
                averaged = finished(graph, begun, parallel)
                if averaged.meta["val"].dtype is not torch.float32:
                    cast = torch.ops.aten._to_copy.default
                    averaged = call(graph, cast, averaged, dtype=torch.float32)
                for reader in readers[node]:
                    reader.replace_input_with(node, averaged)
                PACKED.move(node, averaged)
        return len(packed)
