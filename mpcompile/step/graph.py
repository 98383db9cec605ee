"""The whole training step as data: gradient graph, update graph, and the state between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from math import prod
from typing import Any

from torch import fx

from mpcompile.errors import Defect
from mpcompile.program.graph_text import graph_text, type_text
from mpcompile.program.marks import SLOT, SLOTS
from mpcompile.program.numbers.formulas import Guard
from mpcompile.step.arena import Arena
from mpcompile.step.slots import STATE, Role, Slot
from mpcompile.torch_private.graphs import rename
from mpcompile.torch_private.tensors import fake_like


@dataclass
class StepGraph:
    """A training step.

    Placeholders have their slot's name as the mark `SLOT`, output nodes the names of all their
    results as `SLOTS`. The update graph's results are the next values of state slots; the gradient
    graph's are the loss, gradients and updated buffers.

    If an update gathers several micro-batches, a third graph runs after each gradient graph. Its
    results are next values of state too.

    Attributes:
        gradient: forward and backward.
        update: optimizer, loss scale, counters.
        slots: every slot by name.
        arenas: the buffers of the trained parameters.
        working: names of the parameters that have a 16-bit working copy.
        joined: per slot that is a view of several working copies, or of one and zeros behind it,
            the weights in their order.
        options: the value of each of the optimizer's options during the trace, by slot.
        guards: comparisons of options that must have the same result for the update graph.
        accumulation: adds the gradients of a micro-batch to those before it; None: an update
            follows each gradient graph.
    """

    gradient: fx.GraphModule
    update: fx.GraphModule
    slots: dict[str, Slot]
    arenas: tuple[Arena, ...]
    working: set[str] = field(default_factory=set)
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    options: dict[str, float] = field(default_factory=dict)
    guards: tuple[Guard, ...] = ()
    accumulation: fx.GraphModule | None = None

    def graphs(self) -> dict[str, fx.Graph]:
        """Return the graphs by name, in the order in which they run."""
        found = {"gradient": self.gradient.graph}
        if self.accumulation is not None:
            found["accumulation"] = self.accumulation.graph
        return {**found, "update": self.update.graph}

    def arena_of(self, parameter: str) -> Arena:
        """Return the arena of a trained parameter."""
        return next(arena for arena in self.arenas if parameter in arena.parameters)

    def members(self, name: str) -> tuple[str, ...]:
        """Return the trained weights that a slot of masters or working copies is a view of."""
        return self.joined.get(name) or (name.removesuffix(".working"),)

    def check(self) -> None:
        """Raise Defect if the graphs and the slots do not fit together.

        They must fit before and after every pass. `mpcompile.passes.invariants` has a table of the
        facts that are true after a certain pass.
        """
        for name, graph in self.graphs().items():
            graph.lint()
            for node in graph.find_nodes(op="placeholder"):
                self._check_slot(name, SLOT.get(node), node)
            output = graph.output_node()
            results, names = output.args[0], SLOTS.get(output, ())
            if not isinstance(results, list | tuple) or len(results) != len(names):
                raise Defect(f"the {name} graph returns results without slots")
            for made, node in zip(names, results, strict=True):
                self._check_slot(name, made, node)
        passed = set(SLOTS[self.gradient.graph.output_node()])
        for graph in list(self.graphs().values())[1:]:
            for node in graph.find_nodes(op="placeholder"):
                slot = self.slots[SLOT[node]]
                if slot.role in (Role.GRADIENT, Role.UPDATED) and slot.name not in passed:
                    raise Defect(f"the update reads {slot.name}, which nothing makes")
            for name in SLOTS[graph.output_node()]:
                if self.slots[name].role not in STATE:
                    raise Defect(f"the update writes {name}, which is not state")
        for name, members in self.joined.items():
            arena = self.arena_of(members[0])
            start = arena.parameters.index(members[0])
            last = start + len(members) - 1
            beside = arena.parameters[start : last + 1] == members
            before = sum(map(prod, arena.shapes[start:last]))
            length = prod(self.slots[name].shape)
            if (
                not beside
                or arena.offsets[last] - arena.offsets[start] != before
                or arena.offsets[last + 1] - arena.offsets[start] < length
                or (before + prod(arena.shapes[last]) < length and not arena.zeros)
            ):
                raise Defect(f"the weights of {name} are not side by side")

    def _check_slot(self, graph: str, name: object, node: object) -> None:
        if name not in self.slots or not isinstance(node, fx.Node):
            raise Defect(f"the {graph} graph's {node} has no slot ({name})")
        slot, value = self.slots[str(name)], node.meta["val"]
        if tuple(value.shape) != slot.shape or value.dtype is not slot.dtype:
            raise Defect(f"the {graph} graph's {node} is {type_text(value)}, its slot {slot}")

    def __str__(self) -> str:
        parts = []
        for name, graph in self.graphs().items():
            lines = graph_text(graph).splitlines()
            parts.append("\n".join([name, *(f"  {line}" for line in lines)]))
        return "\n".join(parts)


def placeholders(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return a graph's placeholders by slot name."""
    return {SLOT[node]: node for node in graph.find_nodes(op="placeholder")}


def results(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return a graph's result nodes by slot name."""
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, list | tuple)
    return dict(zip(SLOTS[output], values, strict=True))


def set_results(graph: fx.Graph, values: dict[str, fx.Node]) -> None:
    """Make these nodes the graph's results."""
    output = graph.output_node()
    output.args = (tuple(values.values()),)
    SLOTS[output] = tuple(values)


def add_input(graph: fx.Graph, slot: Slot, like: fx.Node) -> fx.Node:
    """Add a placeholder for a slot behind the existing ones.

    Args:
        graph: gets the placeholder.
        slot: the slot of the placeholder; the caller adds it to the step.
        like: a node whose fake tensor gives mode and device.
    """
    return add_inputs(graph, [slot], like)[0]


def add_inputs(graph: fx.Graph, slots: Iterable[Slot], like: fx.Node) -> list[fx.Node]:
    """Add placeholders for several slots in order; see `add_input`."""
    last = None
    for node in takewhile(lambda node: node.op == "placeholder", graph.nodes):
        last = node
    added = []
    for slot in slots:
        last = _input(graph, slot, like, last)
        added.append(last)
    return added


def _input(graph: fx.Graph, slot: Slot, like: fx.Node, last: fx.Node | None) -> fx.Node:
    if last is None:
        node = graph.placeholder("input")
    else:
        with graph.inserting_after(last):
            node = graph.placeholder("input")
    rename(node, slot.name)
    value = like.meta["val"]
    SLOT[node] = slot.name
    node.meta["val"] = fake_like(value.fake_mode, slot.shape, slot.dtype, value.device)
    return node


def call(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call at the graph's insertion point, with its fake result in ``meta["val"]``."""
    node = graph.call_function(target, args, kwargs)
    values: Any = fx.map_arg([args, kwargs], lambda item: item.meta["val"])
    first = next(
        (
            item.meta["val"]
            for item in node.all_input_nodes
            if hasattr(item.meta["val"], "fake_mode")
        ),
        None,
    )
    if first is None:
        raise ValueError(f"{target} has no tensor input to take the fake mode from")
    with first.fake_mode:
        node.meta["val"] = target(*values[0], **values[1])
    return node
