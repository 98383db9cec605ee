"""Which tensors of an ONNX graph are probabilities, whose scale is 1 however small they are.

The largest of some probabilities can be 1e-6. A difference of 1e-7 is then a tenth of the largest,
but who reads a probability compares it with 1, of which it is one part in ten million.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from mpcompile.onnx_graph.values import is_standard

_SHARES = frozenset({"Softmax"})
_EACH = frozenset({"Sigmoid", "HardSigmoid"})
_KEEPS_AXES = frozenset("Identity Cast Dropout".split())
_MOVES = frozenset(
    "Reshape Transpose Flatten Squeeze Unsqueeze Expand Slice Split Gather GatherElements GatherND "
    "Tile TopK ReduceMean ReduceMax ReduceMin MaxPool AveragePool GlobalMaxPool "
    "GlobalAveragePool".split()
)
"""Ops whose first result is between 0 and 1 if their first input is."""
_ALL = frozenset("Concat Max Min Mean Mul".split())
"""Ops whose result is between 0 and 1 if all that they read is."""
_ONE_AXIS = 13
"""The op set since which a softmax has one axis; before, it has all from its axis on."""


@dataclass(frozen=True, slots=True)
class Probability:
    """The role of a tensor of numbers from 0 to 1.

    Attributes:
        axis: along it the numbers sum to 1; None if each number is a probability of its own.
        onward: whether they sum to 1 along that axis and all behind it together.
    """

    axis: int | None = None
    onward: bool = False


def roles(model: ir.Model) -> dict[str, Probability]:
    """Return the probabilities among the tensors of a model's outer graph, by name."""
    opset = model.graph.opset_imports.get("", 1)
    found = _Roles(opset)
    made = (value for node in model.graph for value in node.outputs)
    return {str(v.name): role for v in made if v.name and (role := found.of(v)) is not None}


class _Roles:
    """What is known so far; all that a value is made from is visited before the value."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._known: dict[ir.Value, Probability | None] = {}

    def of(self, value: ir.Value | None) -> Probability | None:
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = self._found(value)
        return self._known[value]

    def _found(self, value: ir.Value) -> Probability | None:
        node = value.producer()
        if node is None or not is_standard(node):
            return None
        kind = node.op_type
        if kind in _SHARES:
            old = self._opset < _ONE_AXIS
            return Probability(node.attributes.get_int("axis", 1 if old else -1), onward=old)
        if kind in _EACH:
            return Probability()
        if kind == "If":
            return self._same([self._returned(graph, value) for graph in _branches(node)])
        if kind in _ALL:
            return Probability() if all(map(self.of, node.inputs)) else None
        if kind == "Where":
            return self._same([self.of(each) for each in node.inputs[1:]])
        if kind in _KEEPS_AXES | _MOVES and (kind == "Split" or value.index() == 0):
            first = self.of(node.inputs[0])
            return first if first is None or kind in _KEEPS_AXES else Probability()
        return None

    def _same(self, found: list[Probability | None]) -> Probability | None:
        """Return the role that all have; each a probability of its own if they differ in axes."""
        if not found or None in found:
            return None
        return found[0] if len(set(found)) == 1 else Probability()

    def _returned(self, branch: ir.Graph, value: ir.Value) -> Probability | None:
        """Return the role of what a branch of an If returns for one of its results."""
        for node in branch:  # in order, so that no chain of nodes is deep in calls
            for made in node.outputs:
                self.of(made)
        return self.of(branch.outputs[value.index() or 0])


def _branches(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
