"""What graphs inside a graph have in common, whether a torch program or an ONNX file holds them.

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
"""Nobody knows how often such a loop runs; what matters is that its inside runs more than once."""

BRANCH_ROUNDS = Fraction(1, 2)
"""A branch runs, or the other one does."""


class BorderKind(Enum):
    """What a value is that crosses the border of an inner graph; the value is part of its id."""

    CARRY = "carry"
    """The state of a loop."""
    OPERAND = "operand"
    """A value that all inner graphs see."""
    SLICE = "slice"
    """A row of what a loop goes over."""
    RESULT = "result"
    """What a branch returns."""
    STACK = "stack"
    """What a loop collects row by row."""
    CROSSING = "crossing"
    """What enters or leaves a graph that an unknown op calls."""

    @property
    def shares_memory(self) -> bool:
        """Whether the value is stored once under all its names, as long as all have one dtype."""
        return self not in (BorderKind.STACK, BorderKind.CROSSING)


@dataclass(frozen=True, slots=True)
class Inner(Generic[Graph, Node]):
    """The whole graph, or a graph inside it.

    Attributes:
        graph: it.
        prefix: of the ids of what it holds; the whole graph's is empty.
        caller: the node that calls it, the first of them if there are several; None for the whole
            graph.
        rounds: how often a run of the whole graph runs it; a branch counts half.
    """

    graph: Graph
    prefix: str
    caller: Node | None
    rounds: Fraction


def visited(
    inners: Iterable[Inner[Graph, Node]], nodes_of: Callable[[Graph], Iterable[Node]]
) -> Iterator[tuple[Node, Inner[Graph, Node]]]:
    """Yield every node with its graph; what a node calls follows it.

    Args:
        inners: the whole graph and those inside it.
        nodes_of: returns the nodes of a graph in order.
    """
    called: dict[Node | None, list[Inner[Graph, Node]]] = {}
    for inner in inners:
        called.setdefault(inner.caller, []).append(inner)

    def inside(caller: Node | None) -> Iterator[tuple[Node, Inner[Graph, Node]]]:
        return ((node, inner) for inner in called.get(caller, ()) for node in nodes_of(inner.graph))

    # Not recursive: a file may nest graphs deeper than Python may call.
    pending = [inside(None)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        yield found
        if found[0] in called:
            pending.append(inside(found[0]))
