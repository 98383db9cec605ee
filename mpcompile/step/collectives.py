"""Operations between processes as nodes of a graph.

They are torch's functional collectives. The first node starts one, and a second waits for it. The
nodes between them overlap with it.
"""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.step.graph import call
from mpcompile.step.processes import DataParallel
from mpcompile.torch_private.ops import COLLECTIVES

_ATEN = torch.ops.aten


def is_collective(node: fx.Node) -> bool:
    """Whether a node talks to other processes or waits for them."""
    return getattr(node.target, "namespace", "") == "_c10d_functional"


def drop_collectives(graph: fx.Graph) -> None:
    """Remove the collectives of a gradient graph, so that one process can run it alone."""
    for node in list(graph.nodes):
        if is_collective(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def started(graph: fx.Graph, node: fx.Node, parallel: DataParallel) -> fx.Node:
    """Start to add up a tensor over the processes; the result is for `finished`.

    In 16 bits each process divides its tensor first, so that the sum overflows only if the mean
    does. If the update is sharded, each process gets its own slice of the sum, otherwise all of it.

    Args:
        graph: gets the nodes at its insertion point.
        node: a tensor of 16 bits or FP32.
        parallel: the processes.
    """
    ranks, name = parallel.ranks, parallel.name
    if parallel.dtype is not torch.float32:
        node = call(graph, _ATEN.div.Tensor, node, ranks)
    if node.meta["val"].dtype is not parallel.dtype:
        node = call(graph, _ATEN._to_copy.default, node, dtype=parallel.dtype)
    if parallel.shard:
        return call(graph, COLLECTIVES.reduce_scatter_tensor.default, node, "sum", ranks, name)
    return call(graph, COLLECTIVES.all_reduce.default, node, "sum", name)


def finished(graph: fx.Graph, started: fx.Node, parallel: DataParallel) -> fx.Node:
    """Wait for `started`; return the mean over the processes, in the dtype that travelled."""
    node = call(graph, COLLECTIVES.wait_tensor.default, started)
    if parallel.dtype is not torch.float32:
        return node
    return call(graph, _ATEN.div.Tensor, node, parallel.ranks)


def mean(graph: fx.Graph, node: fx.Node, parallel: DataParallel) -> fx.Node:
    """Return the mean of a tensor over the processes, whole, in its own dtype, added up in FP32."""
    dtype = node.meta["val"].dtype
    narrow = dtype.itemsize < 4
    if narrow:
        node = call(graph, _ATEN._to_copy.default, node, dtype=torch.float32)
    summed = call(graph, COLLECTIVES.all_reduce.default, node, "sum", parallel.name)
    summed = call(graph, COLLECTIVES.wait_tensor.default, summed)
    averaged = call(graph, _ATEN.div.Tensor, summed, parallel.ranks)
    return call(graph, _ATEN._to_copy.default, averaged, dtype=dtype) if narrow else averaged


def gathered(graph: fx.Graph, node: fx.Node, parallel: DataParallel) -> fx.Node:
    """Return the tensors of all processes one after another along the first dimension."""
    whole = call(
        graph, COLLECTIVES.all_gather_into_tensor.default, node, parallel.ranks, parallel.name
    )
    return call(graph, COLLECTIVES.wait_tensor.default, whole)


def put_together(own: torch.Tensor, parallel: DataParallel) -> torch.Tensor:
    """Gather the tensors of all processes now, one after another; each of them must call this."""
    whole = COLLECTIVES.all_gather_into_tensor(own.contiguous(), parallel.ranks, parallel.name)
    result: torch.Tensor = COLLECTIVES.wait_tensor(whole)
    return result


def averaged(value: torch.Tensor, parallel: DataParallel | None) -> torch.Tensor:
    """Return the mean over the processes now; each of them must call this. None: the value."""
    if parallel is None:
        return value
    summed = COLLECTIVES.wait_tensor(COLLECTIVES.all_reduce(value, "sum", parallel.name))
    result: torch.Tensor = summed / parallel.ranks
    return result
