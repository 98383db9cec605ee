"""Drop Cast nodes of an ONNX graph whose output no node reads."""

from __future__ import annotations

import onnx_ir as ir


def drop_onnx_casts(model: ir.Model) -> int:
    """Remove Cast nodes whose output no node reads and no graph returns; return how many.

    Example:
        >>> text = "(float[4] x) => (float[4] y) { h = Cast <to = 10> (x) y = Exp (x) }"
        >>> before_and_after(drop_onnx_casts, onnx_model(text))
        - h  f16[4]  Cast x
    """
    dropped = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in reversed(list(graph)):
            value = node.outputs[0] if node.op_type == "Cast" and node.outputs else None
            if value is not None and not value.uses() and not value.is_graph_output():
                graph.remove(node, safe=True)
                dropped += 1
    return dropped
