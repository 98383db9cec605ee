"""The casts of a graph, and the nodes that they read."""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.program.marks import BACKWARD
from mpcompile.program.node_tensors import NARROW
from mpcompile.torch_private.tensors import with_dtype

CAST = torch.ops.aten._to_copy.default


def is_cast(node: object) -> bool:
    """Whether the node only converts the dtype of its input."""
    return isinstance(node, fx.Node) and node.target is CAST and set(node.kwargs) == {"dtype"}


def widens(node: object) -> bool:
    """Whether the node is a lossless cast from 16 bits to FP32."""
    return (
        isinstance(node, fx.Node)
        and is_cast(node)
        and node.kwargs["dtype"] is torch.float32
        and source_of(node).meta["val"].dtype in NARROW
    )


def source_of(cast: fx.Node) -> fx.Node:
    """Return the node that a cast reads."""
    source = cast.args[0]
    assert isinstance(source, fx.Node)
    return source


def wide(term: fx.Node, reader: fx.Node) -> fx.Node:
    """Return a term in FP32; one that was only just narrowed is taken as it was before."""
    if is_cast(term) and source_of(term).meta["val"].dtype is torch.float32:
        return source_of(term)
    return _cast(term, torch.float32, reader)


def narrow_readers(result: fx.Node, dtype: torch.dtype) -> None:
    """Give a result that is FP32 now to its readers as before.

    Readers that widen it read it itself.

    Args:
        result: its readers still expect `dtype`.
        dtype: 16 bits.
    """
    casts = [one for one in result.users if is_cast(one) and one.kwargs["dtype"] is torch.float32]
    others = [one for one in result.users if one not in casts]
    for cast in casts:
        cast.replace_all_uses_with(result)
        cast.graph.erase_node(cast)
    if others:
        rounded = _cast(result, dtype, result.next)
        for reader in others:
            reader.replace_input_with(result, rounded)


def _cast(node: fx.Node, dtype: torch.dtype, before: fx.Node) -> fx.Node:
    with node.graph.inserting_before(before):
        made = node.graph.call_function(CAST, (node,), {"dtype": dtype})
    made.meta = {**node.meta, "val": with_dtype(node.meta["val"], dtype)}
    if node in BACKWARD and before in BACKWARD:
        BACKWARD[made] = True
    return made
