"""Emulate a Tensor Core in an ONNX graph that any provider runs: "pseudo FP16" (paper 4.2).

Each op that reads or writes 16 bits computes in FP32 on widened operands, and its results are
rounded. ONNX Runtime's CPU provider by itself computes chains of FP16 nodes in FP32 and drops the
rounding between them, so it shows neither the error nor the overflow of FP16.
"""

from __future__ import annotations

import onnx_ir as ir

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_STAY = frozenset("Cast CastLike Constant If Loop Scan Identity".split())


def emulate_onnx_half(model: ir.Model) -> int:
    """Put casts round every op on 16-bit tensors; return how many ops have changed.

    A tensor that crosses the border of an inner graph is stored, so it keeps its 16 bits.

    Args:
        model: a graph whose values all have their types.

    Example:
        >>> text = "(float16[4] x) => (float16[4] y) { y = Exp (x) }"
        >>> before_and_after(emulate_onnx_half, onnx_model(text))
        - y  f16[4]  Exp x
        + [node_Cast_0]  x/float/0  f32[4]  Cast x
        + y/unrounded  f32[4]  Exp x/float/0
        + [node_Cast_1]  y  f16[4]  Cast y/unrounded
    """
    graphs = (model.graph, *model.graph.subgraphs())
    return sum(_emulate(graph, f"/{index}") for index, graph in enumerate(graphs))


def _emulate(graph: ir.Graph, suffix: str) -> int:
    changed = 0
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type in _STAY and node.domain in ("", "ai.onnx"):
            continue
        narrow = [value for value in node.outputs if value.dtype in _NARROW]
        reads = [(k, v) for k, v in enumerate(node.inputs) if v is not None and v.dtype in _NARROW]
        if not narrow and not reads:
            continue
        for index, value in reads:
            if value not in wide:
                wide[value] = _cast(value, ir.DataType.FLOAT, suffix)
                producer = wide[value].producer()
                assert producer is not None
                graph.insert_before(node, producer)
            node.replace_input_with(index, wide[value])
        for value in narrow:
            assert value.dtype is not None
            rounded = _cast(value, value.dtype, suffix)
            producer = rounded.producer()
            assert producer is not None
            value.replace_all_uses_with(rounded, replace_graph_outputs=True)
            producer.replace_input_with(0, value)
            graph.insert_after(node, producer)
            rounded.name, value.name = value.name, f"{value.name}/unrounded"
            value.type = ir.TensorType(ir.DataType.FLOAT)
        changed += 1
    return changed


def _cast(value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    made = node.outputs[0]
    made.name = f"{value.name}/{dtype.name.lower()}{suffix}"
    made.type, made.shape = ir.TensorType(dtype), value.shape
    return made
