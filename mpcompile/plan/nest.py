"""Names for graphs inside a graph, in a torch program and in an ONNX file alike.

A branch or a loop is a node that calls inner graphs. `mpcompile.program.control_flow` finds them in
a torch graph and `mpcompile.onnx_graph.nest` in an ONNX graph. Both use the names defined here, and
both return a ``Nest`` with the same fields: ``inners``, ``nodes`` and ``borders``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Generic, TypeVar

Graph = TypeVar("Graph")
Node = TypeVar("Node")

UNKNOWN_ROUNDS = Fraction(10)
"""Assumed runs of a loop of unknown length; it only matters that there is more than one."""

BRANCH_ROUNDS = Fraction(1, 2)
"""Runs of a branch: either this branch runs or the other one."""


class BorderKind(Enum):
    """The kind of a value that crosses the border of an inner graph; its text is part of the id."""

    CARRY = "carry"
    """The state of a loop."""
    OPERAND = "operand"
    """A value that all inner graphs read."""
    SLICE = "slice"
    """A row of a tensor that a loop iterates over."""
    RESULT = "result"
    """A result of a branch."""
    STACK = "stack"
    """A tensor that a loop collects row by row."""
    CROSSING = "crossing"
    """A value that enters or leaves a graph that an unknown op calls."""

    @property
    def shares_memory(self) -> bool:
        """Whether the value is stored once under all its names, if all have one dtype."""
        return self not in (BorderKind.STACK, BorderKind.CROSSING)


@dataclass(frozen=True, slots=True)
class Inner(Generic[Graph, Node]):
    """The whole graph, or a graph inside it.

    Attributes:
        graph: the graph.
        prefix: prefix of the ids of its nodes; empty for the whole graph.
        caller: the node that calls it, the first one if there are several; None for the whole
            graph.
        rounds: how often one run of the whole graph runs it; a branch counts half.
    """

    graph: Graph
    prefix: str
    caller: Node | None
    rounds: Fraction


def visited(
    inners: Iterable[Inner[Graph, Node]], nodes_of: Callable[[Graph], Iterable[Node]]
) -> Iterator[tuple[Node, Inner[Graph, Node]]]:
    """Yield every node with its graph; the nodes of a called graph follow the caller.

    Args:
        inners: the whole graph and those inside it.
        nodes_of: returns the nodes of a graph in order.
    """
    called: dict[Node | None, list[Inner[Graph, Node]]] = {}
    for inner in inners:
        called.setdefault(inner.caller, []).append(inner)

    def inside(caller: Node | None) -> Iterator[tuple[Node, Inner[Graph, Node]]]:
        return ((node, inner) for inner in called.get(caller, ()) for node in nodes_of(inner.graph))

    # Not recursive: a file may nest graphs deeper than Python's recursion limit.
    pending = [inside(None)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        yield found
        if found[0] in called:
            pending.append(inside(found[0]))
