"""Give a softmax no logit below a floor, so that a row that is masked as a whole stays even.

In FP32 a mask of -3.4e38 swallows the logit that it is added to. So all logits of a hidden row are
equal, and their softmax is even. A mask that FP16 can hold does not swallow them where ONNX Runtime
computes the chain in FP32, nor large logits in FP16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

FLOOR = -(2.0**14)
"""Above the mask added to any relevant logit, and far below any logit that is seen."""
_BROADCASTS = 8
"""The op set since which a Max takes a tensor and a number."""


@dataclass(frozen=True)
class FloorMaskedRows:
    """Put a Max before softmaxes.

    Attributes:
        softmaxes: nodes of the model, in any of its graphs.

    Example:
        >>> graph = "{ a = Add (x, m) y = Softmax (a) }"
        >>> model = onnx_model(f"(float16[2,8] x, float16[2,8] m) => (float16[2,8] y) {graph}")
        >>> before_and_after(FloorMaskedRows((model.graph[1],)), model)
        + [a_floored_max]  a_floored  f16[2,8]  Max a floor_float16
        - y  f16[2,8]  Softmax a
        + y  f16[2,8]  Softmax a_floored
    """

    softmaxes: tuple[ir.Node, ...]

    def __call__(self, model: ir.Model) -> int:
        """Put the nodes in; return how many."""
        if model.graph.opset_imports.get("", 1) < _BROADCASTS:
            return 0
        names = {v.name for graph in model.graphs() for n in graph for v in n.outputs}
        names |= {name for graph in model.graphs() for name in graph.initializers}
        names |= {node.name for graph in model.graphs() for node in graph}
        floors: dict[tuple[ir.Graph, ir.DataType], ir.Value] = {}
        for softmax in self.softmaxes:
            read, graph = softmax.inputs[0], softmax.graph
            assert read is not None and read.dtype is not None and isinstance(graph, ir.Graph)
            if (graph, read.dtype) not in floors:
                held = ir.tensor(np.array(FLOOR, read.dtype.numpy()))
                name = _fresh(f"floor_{read.dtype.name.lower()}", names)
                floor = ir.Value(
                    name=name, type=ir.TensorType(read.dtype), shape=ir.Shape([]), const_value=held
                )
                graph.register_initializer(floor)
                floors[graph, read.dtype] = floor
            name = _fresh(f"{read.name}_floored", names)
            node = ir.node(
                "Max", [read, floors[graph, read.dtype]], name=_fresh(f"{name}_max", names)
            )
            made = node.outputs[0]
            made.name, made.type, made.shape = name, read.type, read.shape
            graph.insert_before(softmax, node)
            softmax.replace_input_with(0, made)
        return len(self.softmaxes)


def _fresh(wanted: str, names: set[str | None]) -> str:
    name, count = wanted, 1
    while name in names:
        count += 1
        name = f"{wanted}_{count}"
    names.add(name)
    return name
