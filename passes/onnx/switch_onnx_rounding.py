"""Round what chosen ops read and make to 16 bits, each op only if its switch is on.

A search tries many sets of ops. With switches it loads the graph once; another set is another
input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mpcompile.onnx_graph.values import constant_of

SWITCHES = "round?"
"""Name of the input: one bool for each switch."""
OLDEST = 9
"""The op set since which there is a Where."""


@dataclass(frozen=True)
class SwitchOnnxRounding:
    """Put casts to 16 bits and back round ops, behind switches.

    With all switches off the graph computes what it did before.

    Attributes:
        switches: the switch of each op, by node of any of the model's graphs.
        dtype: the 16-bit format.

    Example:
        >>> model = onnx_model("(float[4] x) => (float[4] y) { y = Exp (x) }")
        >>> switches = {model.graph[0]: 0}
        >>> before_and_after(SwitchOnnxRounding(switches, ir.DataType.FLOAT16), model)
        - y  f32[4]  Exp x
        + [round?/0]  round?/0  b8[]  Gather round? round?/0/index
        + [x/0/narrow]  x/0/narrow  f16[4]  Cast x
        + [x/0/wide]  x/0/wide  f32[4]  Cast x/0/narrow
        + [x/0/read0]  x/0/read0  f32[4]  Where round?/0 x/0/wide x
        + y/unrounded  f32[4]  Exp x/0/read0
        + [y/unrounded/1/narrow]  y/unrounded/1/narrow  f16[4]  Cast y/unrounded
        + [y/unrounded/1/wide]  y/unrounded/1/wide  f32[4]  Cast y/unrounded/1/narrow
        + [y/made]  y  f32[4]  Where round?/0 y/unrounded/1/wide y/unrounded
    """

    switches: Mapping[ir.Node, int]
    dtype: ir.DataType

    def __call__(self, model: ir.Model) -> int:
        """Change a model whose values all have their types; return how many ops have switches."""
        if not self.switches or model.graph.opset_imports.get("", 0) < OLDEST:
            return 0
        count = max(self.switches.values()) + 1
        given = _value(SWITCHES, ir.DataType.BOOL, [count])
        model.graph.inputs.append(given)
        flags = {}
        for number in sorted(set(self.switches.values())):
            index = _value(f"{SWITCHES}/{number}/index", ir.DataType.INT64, [])
            index.const_value = ir.tensor(np.array(number, np.int64))
            model.graph.register_initializer(index)
            gather = ir.node("Gather", [given, index])
            _name(gather, f"{SWITCHES}/{number}", ir.DataType.BOOL, ir.Shape([]))
            model.graph.insert_before(model.graph[0], gather)
            flags[number] = gather.outputs[0]
        rounding = _Rounding(self.dtype)
        for node, number in self.switches.items():
            _switch(node, flags[number], number, rounding)
        return len(self.switches)


def _switch(node: ir.Node, flag: ir.Value, number: int, rounding: _Rounding) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype is ir.DataType.FLOAT:
            chosen = ir.node("Where", [flag, rounding.of(value, node), value])
            _name(chosen, f"{value.name}/{number}/read{index}", ir.DataType.FLOAT, value.shape)
            graph.insert_before(node, chosen)
            node.replace_input_with(index, chosen.outputs[0])
    for value in node.outputs:
        if value.dtype is ir.DataType.FLOAT and value.name:
            _switch_result(value, flag, rounding)


def _switch_result(value: ir.Value, flag: ir.Value, rounding: _Rounding) -> None:
    node = value.producer()
    assert node is not None and isinstance(node.graph, ir.Graph)
    chosen = ir.node("Where", [flag, value, value])
    made = chosen.outputs[0]
    _name(chosen, f"{value.name}/made", ir.DataType.FLOAT, value.shape)
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    node.graph.insert_after(node, chosen)
    made.name, value.name = value.name, f"{value.name}/unrounded"
    chosen.replace_input_with(1, rounding.of(value, chosen))
    chosen.replace_input_with(2, value)
    rounding.share(value, made)


class _Rounding:
    """Makes each value in 16 bits and back once in each graph; constants are rounded here."""

    def __init__(self, dtype: ir.DataType) -> None:
        self._dtype = dtype
        self._made: dict[tuple[ir.Graph, ir.Value], ir.Value] = {}

    def share(self, value: ir.Value, rounded: ir.Value) -> None:
        """Let a result that may be rounded have the same 16-bit numbers as the result itself."""
        node = value.producer()
        assert node is not None and isinstance(node.graph, ir.Graph)
        self._made[node.graph, rounded] = self._made[node.graph, value]

    def of(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """Return a value after a round trip through 16 bits, made before its first reader."""
        graph = reader.graph
        assert isinstance(graph, ir.Graph)
        if (graph, value) not in self._made:
            self._made[graph, value] = self._new(value, reader, graph)
        return self._made[graph, value]

    def _new(self, value: ir.Value, reader: ir.Node, graph: ir.Graph) -> ir.Value:
        tensor = constant_of(value)
        if tensor is not None:
            with np.errstate(over="ignore"):
                held = tensor.numpy().astype(self._dtype.numpy()).astype(np.float32)
            rounded = _value(
                f"{value.name}/rounded/{self._count()}", ir.DataType.FLOAT, [*held.shape]
            )
            rounded.const_value = ir.tensor(held)
            graph.register_initializer(rounded)
            return rounded
        narrow = ir.node("Cast", [value], {"to": int(self._dtype)})
        wide = ir.node("Cast", [narrow.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        place = f"{value.name}/{self._count()}"
        _name(narrow, f"{place}/narrow", self._dtype, value.shape)
        _name(wide, f"{place}/wide", ir.DataType.FLOAT, value.shape)
        graph.insert_before(reader, [narrow, wide])
        return wide.outputs[0]

    def _count(self) -> int:
        return len(self._made)


def _value(name: str, dtype: ir.DataType, shape: list[int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _name(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    node.name = name
    made = node.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(dtype), shape
