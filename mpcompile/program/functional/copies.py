"""Write functional copies as conversions: torch has no derivative of ``aten.copy``.

Functionalization makes ``copy`` of ``copy_``, such as a write into a slice.
"""

from __future__ import annotations

import torch
from torch import fx

_ATEN = torch.ops.aten


def write_out_copies(graph: fx.Graph) -> int:
    """Replace each ``copy`` by a conversion and an ``expand`` where they are needed.

    Args:
        graph: functional, with ``meta["val"]``.

    Returns:
        How many there were.
    """
    found = graph.find_nodes(op="call_function", target=_ATEN.copy.default)
    for node in found:
        like, value = (item.meta["val"] for item in node.args[:2])
        made = node.args[1]
        with graph.inserting_before(node):
            if value.dtype is not like.dtype or value.device != like.device:
                made = graph.call_function(
                    _ATEN._to_copy.default, (made,), {"dtype": like.dtype, "device": like.device}
                )
                made.meta = {**node.meta, "val": value.to(like.device, like.dtype)}
            if value.shape != like.shape:
                made = graph.call_function(_ATEN.expand.default, (made, list(like.shape)))
                made.meta = {**node.meta, "val": like}
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    return len(found)
