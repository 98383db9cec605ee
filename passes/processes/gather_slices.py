"""Gather from the processes' slices the weights that forward and backward read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mpcompile.program.marks import GATHERED
from mpcompile.step.arena import Arena
from mpcompile.step.collectives import gathered
from mpcompile.step.graph import StepGraph, call, placeholders, results, set_results
from mpcompile.step.loop import Loop
from mpcompile.step.slots import Role, Slot

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class GatherSlices:
    """Gather working copies, and the FP32 arenas that forward reads masters of.

    Attributes:
        loop: says whether each process updates a slice.

    Example:
        >>> loop = among(2, shard=True)
        >>> before_and_after(GatherSlices(loop), step_before("gather_slices", loop))
        update
        + all_gather_into_tensor_default_1  f16[64]  all_gather_into_tensor _to_copy_default 2 all
        + wait_tensor_default_2  f16[64]  wait_tensor all_gather_into_tensor_default_1
        - return  arena0.working = _to_copy_default
        + return  arena0.working = wait_tensor_default_2
    """

    loop: Loop

    def __call__(self, step: StepGraph) -> int:
        """Return the number of tensors gathered, or 0 if they were gathered before.

        Working copies are cast from the slice, so that only 16 bits per weight travel. The whole
        FP32 arena has its own slot beside the slice, ``arena0.whole``.
        """
        parallel, graph = self.loop.parallel, step.update.graph
        if parallel is None or not parallel.shard:
            return 0
        values = results(graph)
        done = 0
        for arena in step.arenas:
            whole, copies = f"{arena.name}.whole", f"{arena.name}.working"
            if any(GATHERED.get(node) == arena.name for node in graph.nodes):
                continue
            with graph.inserting_before(graph.output_node()):
                if copies in values:
                    length = arena.offsets[len([n for n in arena.parameters if n in step.working])]
                    node = gathered(graph, values[copies], parallel)
                    GATHERED[node] = arena.name
                    if length < arena.length:
                        node = call(graph, _ATEN.slice.Tensor, node, 0, 0, length)
                    values[copies] = node
                    step.slots[copies] = replace(step.slots[copies], shape=(length,))
                    done += 1
                if _read(step, arena):
                    values[whole] = gathered(graph, values[f"{arena.name}.master"], parallel)
                    GATHERED[values[whole]] = arena.name
                    step.slots[whole] = Slot(whole, Role.WORKING, (arena.length,), torch.float32)
                    done += 1
        set_results(graph, values)
        return done


def _read(step: StepGraph, arena: Arena) -> bool:
    """Whether forward or backward reads one of an arena's masters."""
    inputs = placeholders(step.gradient.graph)
    return any(name in inputs and inputs[name].users for name in arena.parameters)
