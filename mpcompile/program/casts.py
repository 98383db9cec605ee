"""The casts of a graph, and the nodes that they read."""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.program.node_tensors import NARROW

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
