"""Control flow in a graph: its inner graphs, how often they run, which values cross borders.

`torch.cond`, `while_loop`, `scan` and `map` are nodes that call inner graphs. A value that enters
such a graph, is carried from one round of a loop to the next, or leaves it, has several names: an
argument of the node, an input of the inner graph, its result, the node's result. A `Border` is all
the names of one value, which must have one dtype.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import networkx as nx
from torch import fx

from mpcompile.plan.nest import BRANCH_ROUNDS, UNKNOWN_ROUNDS, BorderKind, Inner, visited
from mpcompile.torch_private.ops import is_higher_order, op_name
from mpcompile.torch_private.tracing import traced


@dataclass(frozen=True, slots=True)
class _Call:
    """How an op calls inner graphs.

    Attributes:
        graphs: positions of the inner graphs among its arguments.
        returning: the positions of those graphs whose results are the op's results.
        inputs: the inner graphs' inputs, in order: a kind, the position of a list of arguments.
        collects: the kind of results that are no carry.
    """

    graphs: tuple[int, ...]
    returning: tuple[int, ...]
    inputs: tuple[tuple[BorderKind, int], ...]
    collects: BorderKind


_CALLS = {
    "cond": _Call((1, 2), (1, 2), ((BorderKind.OPERAND, 3),), BorderKind.RESULT),
    "while_loop": _Call(
        (0, 1), (1,), ((BorderKind.CARRY, 2), (BorderKind.OPERAND, 3)), BorderKind.RESULT
    ),
    "while_loop_stack_output": _Call(
        (0, 1), (1,), ((BorderKind.CARRY, 2), (BorderKind.OPERAND, 3)), BorderKind.RESULT
    ),
    "scan": _Call(
        (0,),
        (0,),
        ((BorderKind.CARRY, 1), (BorderKind.SLICE, 2), (BorderKind.OPERAND, 3)),
        BorderKind.STACK,
    ),
    "map_impl": _Call(
        (0,), (0,), ((BorderKind.SLICE, 1), (BorderKind.OPERAND, 2)), BorderKind.STACK
    ),
}


@dataclass(frozen=True, slots=True)
class Use:
    """The position where a value is read: ``reader.args[argument][element]``."""

    reader: fx.Node
    argument: int
    element: int

    @property
    def value(self) -> object:
        """The value that is read."""
        return self.reader.args[self.argument][self.element]  # type: ignore[index]

    def replace(self, value: fx.Node) -> None:
        """Let the reader read another value."""
        values = self.reader.args[self.argument]
        assert isinstance(values, list | tuple)
        changed = [*values[: self.element], value, *values[self.element + 1 :]]
        self.reader.update_arg(self.argument, type(values)(changed))


@dataclass(frozen=True, slots=True)
class Border:
    """One value under all the names it has on both sides of inner graphs' borders.

    Attributes:
        ids: the calling node's id, the kind and a number (``scan/carry_0``), once per caller.
        kind: the kind of the value.
        caller: the node that calls the inner graph; the first one if a graph is shared.
        reads: its sources: arguments of the caller, results of inner graphs.
        inputs: the inner graphs' inputs that it becomes.
        results: callers and positions among their results.
    """

    ids: tuple[str, ...]
    kind: BorderKind
    caller: fx.Node
    reads: tuple[Use, ...]
    inputs: tuple[fx.Node, ...]
    results: tuple[tuple[fx.Node, int], ...]

    @property
    def id(self) -> str:
        """The first of its ids."""
        return self.ids[0]

    @property
    def writes(self) -> tuple[fx.Node, ...]:
        """The nodes that hold it: inputs of inner graphs, items of the callers' results."""
        return (*self.inputs, *(item for call, k in self.results for item in items_of(call, k)))


@dataclass(frozen=True, slots=True)
class Nest:
    """A graph and the graphs inside it, each once for any number of callers.

    Attributes:
        inners: the graphs, each behind a graph that calls it.
        nodes: per node its id, which is unique among all graphs.
        borders: the values that cross borders, per node that calls graphs; if several nodes call
            one graph, the first of them has the borders.
    """

    inners: tuple[Inner[fx.GraphModule, fx.Node], ...]
    nodes: dict[fx.Node, str]
    borders: dict[fx.Node, tuple[Border, ...]]

    def visited(self) -> Iterator[tuple[fx.Node, Inner[fx.GraphModule, fx.Node]]]:
        """Yield every node with its graph; the nodes of a called graph follow the caller."""
        return visited(self.inners, lambda module: module.graph.nodes)


def items_of(call: fx.Node, position: int) -> list[fx.Node]:
    """Return the nodes that take one of a node's results."""
    return [user for user in call.users if _is_item(user) and user.args[1] == position]


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def inner_graphs(module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """Yield every graph module that nodes of a graph name, without the graphs inside them."""
    for node in module.graph.find_nodes(op="get_attr"):
        inner = getattr(module, str(node.target), None)
        if isinstance(inner, fx.GraphModule):
            yield inner


def is_control_flow(node: fx.Node) -> bool:
    """Whether the node is a branch or a loop."""
    return is_higher_order(node) and op_name(node) in _CALLS


def called_graphs(node: fx.Node, module: fx.GraphModule) -> list[fx.GraphModule]:
    """Return the graphs that a branch or a loop calls; none for another node."""
    if not is_control_flow(node):
        return []
    found = [_inner(item, module) for item in node.all_input_nodes if item.op == "get_attr"]
    return [graph for graph in found if graph is not None]


def all_graphs(module: fx.GraphModule) -> list[fx.GraphModule]:
    """Return a graph and all graphs inside it, for every caller, each once, callers first."""
    found = {id(module): module}
    for inner in inner_graphs(module):
        for graph in all_graphs(inner):
            found.setdefault(id(graph), graph)
    return list(found.values())


def with_graphs(op: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a call's arguments with functions among them traced to graphs.

    Functionalization passes such functions wrapped.
    """
    call = _CALLS.get(getattr(op, "__name__", ""))
    if call is None or all(isinstance(args[index], fx.GraphModule) for index in call.graphs):
        return args
    inputs: list[Any] = []
    for kind, index in call.inputs:
        inputs += (
            [value.select(0, 0) for value in args[index]]
            if kind == BorderKind.SLICE
            else args[index]
        )
    return tuple(
        traced(value, inputs)
        if index in call.graphs and not isinstance(value, fx.GraphModule)
        else value
        for index, value in enumerate(args)
    )


def nest_of(module: fx.GraphModule) -> Nest:
    """Find the graphs inside a graph that a plan may change.

    An op that calls inner graphs in an unknown way is left as it is, and so is every op that shares
    a graph with it.
    """
    untouched = _untouched(module)
    prefixes = {module: ""}
    parts: list[Border] = []
    calls: list[tuple[str, str, Fraction]] = []
    callers: dict[fx.GraphModule, fx.Node | None] = {module: None}
    borders: dict[fx.Node, tuple[Border, ...]] = {}

    def walk(graph: fx.GraphModule) -> None:
        prefix = prefixes[graph]
        for node in graph.graph.nodes:
            if node in untouched or not _is_call(node, graph):
                continue
            called = _called(node, graph)
            new = []
            for position, inner in called.items():
                if inner not in prefixes:
                    prefixes[inner] = f"{prefix}{node.args[position].target}."
                    callers[inner] = node
                    new.append(inner)
            calls.extend((prefix, prefixes[inner], _rounds(node)) for inner in called.values())
            parts.extend(_borders(prefix + node.name, node, called))
            borders[node] = ()
            for inner in new:
                walk(inner)

    walk(module)
    for border in _joined(parts):
        borders[border.caller] += (border,)
    rounds = _all_rounds(calls)
    return Nest(
        tuple(
            Inner(graph, prefix, callers[graph], rounds[prefix])
            for graph, prefix in prefixes.items()
        ),
        {
            node: prefix + node.name
            for graph, prefix in prefixes.items()
            for node in graph.graph.nodes
        },
        borders,
    )


def _is_call(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a node calls inner graphs in a known way."""
    call = _CALLS[op_name(node)] if is_control_flow(node) else None
    if call is None or node.kwargs or len(node.args) <= max(p for _, p in call.inputs):
        return False
    lists = [node.args[position] for _, position in call.inputs]
    values = node.meta.get("val")
    graphs = [_inner(node.args[position], module) for position in call.graphs]
    return (
        min(map(_length, lists)) >= 0
        and isinstance(values, list | tuple)
        and all(_is_item(user) for user in node.users)
        and all(
            graph is not None
            and len(_placeholders(graph)) == sum(map(_length, lists))
            and (position not in call.returning or len(_returned(graph)) == len(values))
            for graph, position in zip(graphs, call.graphs, strict=True)
        )
    )


def _length(values: object) -> int:
    return len(values) if isinstance(values, list | tuple) else -1


def _inner(value: object, module: fx.GraphModule) -> fx.GraphModule | None:
    found = getattr(module, str(value.target), None) if isinstance(value, fx.Node) else None
    return found if isinstance(found, fx.GraphModule) else None


def _called(node: fx.Node, module: fx.GraphModule) -> dict[int, fx.GraphModule]:
    """Return the inner graphs of a known call by their positions among its arguments."""
    found = {p: _inner(node.args[p], module) for p in _CALLS[op_name(node)].graphs}
    return {position: graph for position, graph in found.items() if graph is not None}


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.find_nodes(op="placeholder"))


def _returned(module: fx.GraphModule) -> tuple[object, ...]:
    returned = module.graph.output_node().args[0]
    return tuple(returned) if isinstance(returned, list | tuple) else ()


def _untouched(module: fx.GraphModule) -> set[fx.Node]:
    """Return the calls of graphs that must not change, because an unknown call shares them."""
    reasons: nx.DiGraph = nx.DiGraph()
    reasons.add_node("unknown")
    for graph in all_graphs(module):
        for name in graph.graph.find_nodes(op="get_attr"):
            inner = _inner(name, graph)
            for user in name.users if inner is not None else ():
                reasons.add_edges_from([(inner, user), (user, inner), (graph, user)])
                if not _is_call(user, graph):
                    reasons.add_edge("unknown", user)
    return {node for node in nx.descendants(reasons, "unknown") if isinstance(node, fx.Node)}


def _rounds(node: fx.Node) -> Fraction:
    """Return how often one run of a call runs its inner graphs."""
    if op_name(node) == "cond":
        return BRANCH_ROUNDS
    for kind, position in _CALLS[op_name(node)].inputs:
        given = node.args[position]
        assert isinstance(given, list | tuple)
        if kind == BorderKind.SLICE and given and isinstance(given[0], fx.Node):
            length = given[0].meta["val"].shape[0]
            return Fraction(length) if isinstance(length, int) else UNKNOWN_ROUNDS
    return UNKNOWN_ROUNDS


def _all_rounds(calls: list[tuple[str, str, Fraction]]) -> dict[str, Fraction]:
    """Add up, callers first, how often each graph runs."""
    callers: nx.MultiDiGraph = nx.MultiDiGraph()
    callers.add_node("")
    for caller, callee, rounds in calls:
        callers.add_edge(caller, callee, rounds=rounds)
    total = dict.fromkeys(callers, Fraction(0)) | {"": Fraction(1)}
    for name in nx.topological_sort(callers):
        for _, callee, rounds in callers.out_edges(name, data="rounds"):
            total[callee] += total[name] * rounds
    return total


def _borders(id: str, node: fx.Node, graphs: dict[int, fx.GraphModule]) -> Iterator[Border]:
    """Yield the borders of one call."""
    call = _CALLS[op_name(node)]
    inputs = list(zip(*(_placeholders(graph) for graph in graphs.values()), strict=True))
    outputs = [graphs[position].graph.output_node() for position in call.returning]
    slot = carried = 0
    for kind, position in call.inputs:
        given = node.args[position]
        assert isinstance(given, list | tuple)
        for index in range(len(given)):
            reads, results = [Use(node, position, index)], []
            if kind == BorderKind.CARRY:
                reads += [Use(output, 0, index) for output in outputs]
                results = [(node, index)]
                carried += 1
            yield Border(
                (f"{id}/{kind.value}_{index}",),
                kind,
                node,
                tuple(reads),
                inputs[slot],
                tuple(results),
            )
            slot += 1
    for index in range(carried, len(node.meta["val"])):
        yield Border(
            (f"{id}/{call.collects.value}_{index}",),
            call.collects,
            node,
            tuple(Use(output, 0, index) for output in outputs),
            (),
            ((node, index),),
        )


def _joined(parts: list[Border]) -> Iterator[Border]:
    """Join the borders that two callers of one graph share."""
    names: nx.Graph = nx.Graph()
    for number, part in enumerate(parts):
        names.add_edges_from((number, name) for name in (*part.reads, *part.inputs, *part.results))
    for component in nx.connected_components(names):
        same = [parts[number] for number in sorted(n for n in component if isinstance(n, int))]
        yield Border(
            tuple(id for part in same for id in part.ids),
            BorderKind.STACK
            if any(part.kind == BorderKind.STACK for part in same)
            else same[0].kind,
            same[0].caller,
            tuple(dict.fromkeys(use for part in same for use in part.reads)),
            tuple(dict.fromkeys(node for part in same for node in part.inputs)),
            tuple(dict.fromkeys(item for part in same for item in part.results)),
        )
