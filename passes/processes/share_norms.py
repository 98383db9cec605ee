"""Give each process that sees one slice of the gradients the norm of all slices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcompile.program.marks import MEASURE, NORM, SHARED_NORM
from mpcompile.step.collectives import gathered
from mpcompile.step.graph import StepGraph, call
from mpcompile.step.loop import Loop

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class ShareNorms:
    """Turn the norm of one slice into the norm of all, so that all processes clip and skip alike.

    Attributes:
        loop: says whether each process updates a slice.

    Example:
        >>> loop = among(2, shard=True)
        >>> before_and_after(ShareNorms(loop), step_before("share_norms", loop))
        update
        + reshape_default_1  f32[1]  reshape linalg_vector_norm_default [1]
        + all_gather_into_tensor_default  f32[2]  all_gather_into_tensor reshape_default_1 2 all
        + wait_tensor_default_1  f32[2]  wait_tensor all_gather_into_tensor_default
        + linalg_vector_norm_default_1  f32[]  linalg_vector_norm wait_tensor_default_1 inf
        - lt_scalar  b8[]  lt linalg_vector_norm_default inf
        + lt_scalar  b8[]  lt linalg_vector_norm_default_1 inf
    """

    loop: Loop

    def __call__(self, step: StepGraph) -> int:
        """Return the number of norms shared, or 0 if they were shared before."""
        parallel, graph = self.loop.parallel, step.update.graph
        if parallel is None or not parallel.shard:
            return 0
        norms = [
            node
            for node in graph.nodes
            if (node in MEASURE or NORM.get(node) == "total") and node not in SHARED_NORM
        ]
        for node in norms:
            readers = list(node.users)
            with graph.inserting_before(node.next):
                own = call(graph, _ATEN.reshape.default, node, [1])
                every = gathered(graph, own, parallel)
                norm = call(graph, _ATEN.linalg_vector_norm.default, every, *node.args[1:])
            for reader in readers:
                reader.replace_input_with(node, norm)
            MEASURE.move(node, norm)
            NORM.move(node, norm)
            SHARED_NORM[norm] = True
        return len(norms)
