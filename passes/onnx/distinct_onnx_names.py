"""Give nodes that share a name different names: ONNX allows sharing, ONNX Runtime refuses it."""

from __future__ import annotations

import onnx_ir as ir


def distinct_onnx_names(model: ir.Model) -> int:
    """Rename all but the first node of each name; return how many were renamed.

    Nodes without a name get none.

    Example:
        >>> text = "(float[4] x) => (float[4] y) { [n] h = Exp (x) [n] y = Exp (h) }"
        >>> before_and_after(distinct_onnx_names, onnx_model(text))
        - [n]  y  f32[4]  Exp h
        + [n~2]  y  f32[4]  Exp h
    """
    names = {node.name for node in model.graph.all_nodes()}
    seen: set[str] = set()
    renamed = 0
    for node in model.graph.all_nodes():
        name = node.name
        if not name:
            continue
        if name in seen:
            count = 2
            while f"{name}~{count}" in names:
                count += 1
            node.name = f"{name}~{count}"
            names.add(node.name)
            renamed += 1
        seen.add(name)
    return renamed
