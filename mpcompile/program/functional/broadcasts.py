"""Give each input of ``broadcast_tensors`` an op of its own.

The losses of ``torch.nn.functional`` broadcast prediction and target in one op. One op has one
precision, so a target that came with the batch would be stored as the prediction is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from mpcompile.torch_private.ops import op_name

_EXPAND = torch.ops.aten.expand.default


def split_broadcasts(graph: fx.Graph) -> None:
    """Replace each result of ``broadcast_tensors`` by its input, or by an ``expand`` of it.

    A result whose size is a symbol stays if its input has another shape.

    Args:
        graph: a functional graph with ``meta["val"]`` on its nodes; it is changed.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) == "broadcast_tensors":
            inputs: Sequence[fx.Node] = node.args[0]
            for result in list(node.users):
                alone = _alone(graph, inputs[result.args[1]], result)
                if alone is not None:
                    result.replace_all_uses_with(alone)
                    graph.erase_node(result)
            if not node.users:
                graph.erase_node(node)


def _alone(graph: fx.Graph, source: fx.Node, result: fx.Node) -> fx.Node | None:
    before, after = source.meta["val"].shape, result.meta["val"].shape
    if before == after:
        return source
    if not all(isinstance(size, int) for size in after):
        return None
    with graph.inserting_before(result):
        expanded = graph.call_function(_EXPAND, (source, list(after)))
    expanded.meta = dict(result.meta)
    return expanded
