"""The cut of a joint graph into forward and backward: what is kept, and what is computed again."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from mpcompile.step.liveness import result_bytes
from mpcompile.torch_private.inductor import min_cut
from mpcompile.torch_private.ops import draws
from mpcompile.torch_private.tensors import fake_like


@dataclass(frozen=True, slots=True)
class Cut:
    """A gradient graph after the cut, in the ops that inductor compiles.

    Attributes:
        forward: returns its results, then the tensors that are kept for backward.
        backward: computes again the tensors that are neither kept nor inputs.
        results: number of forward's results before the kept tensors.
        seconds: time of the cut.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    results: int
    seconds: float

    @property
    def saved_bytes(self) -> int:
        """Bytes made by forward that are alive between the halves."""
        return result_bytes(self.forward.graph, self.results)


def choose(joint: fx.GraphModule, results: int, memory_budget: float) -> Cut:
    """Let torch cut a joint graph; every input is free to keep.

    Random numbers are marked to be kept: under a budget torch would also draw them again. The
    budget is computed from the bytes of all inputs, so inputs without a reader must have none.

    Args:
        joint: as AOTAutograd passes it to a partitioner; changed in place.
        results: number of forward's results.
        memory_budget: as for `Recomputing`.
    """
    for node in joint.graph.nodes:
        # An attention without dropout is tagged as random too.
        if draws(node):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    inputs = joint.graph.find_nodes(op="placeholder")
    static = [index for index, node in enumerate(inputs) if not node.name.startswith("tangents")]
    unread = {node.name: node.meta["val"] for node in inputs if not node.users}
    for node in inputs:
        if node.name in unread:
            like = unread[node.name]
            node.meta["val"] = fake_like(like.fake_mode, (0,), like.dtype, like.device)
    begin = time.perf_counter()
    forward, backward = min_cut(joint, results, static, memory_budget)
    seconds = time.perf_counter() - begin
    for node in forward.graph.find_nodes(op="placeholder"):
        node.meta["val"] = unread.get(node.name, node.meta["val"])
    return Cut(forward, backward, results, seconds)
