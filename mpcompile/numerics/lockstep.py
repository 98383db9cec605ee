"""Run forward and backward of a step beside itself in FP32 and FP64, node by node.

All three run the same graph, so every node of it can be compared, those of backward too. In the
wide runs every float tensor has the wide format, casts change nothing, and weights are the masters.
It is an interpreter of its own: what is compiled is neither run nor changed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.marks import EMULATES, SLOT
from mpcompile.program.random_state import RandomState, drawn_again, random_state
from mpcompile.step.collectives import drop_collectives
from mpcompile.step.graph import StepGraph
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import draws, is_higher_order, op_name
from mpcompile.train.train_step import TrainStep

FULL, EXACT = torch.float32, torch.float64
"""The wide formats: what plain PyTorch computes in, and the reference."""

UNWRITTEN = frozenset(
    "empty empty_like new_empty empty_strided new_empty_strided empty_permuted".split()
)
"""Ops whose result holds what the memory happens to hold."""


@dataclass(frozen=True)
class Moment:
    """All that a gradient graph reads in one step, so that it can be run again.

    Attributes:
        step: the step graph.
        values: its inputs by slot, as the step reads them.
        masters: per slot of a working copy the FP32 weights.
        random: the random numbers' state before the step.
    """

    step: StepGraph
    values: Mapping[str, torch.Tensor]
    masters: Mapping[str, torch.Tensor]
    random: RandomState


def moment(step: TrainStep, *batch: torch.Tensor) -> Moment:
    """Return what a step is about to read; the state is not copied."""
    values = step.values(*batch)
    device = next(iter(values.values())).device
    return Moment(step.graph_of(*batch), values, step.masters(*batch), random_state(device))


@dataclass(frozen=True, slots=True)
class Seen:
    """One float tensor in three arithmetics.

    Attributes:
        node: of the step's gradient graph.
        ours: as the step computes it: on a CPU in pseudo FP16.
        full: in FP32.
        exact: in FP64.
        own: what FP64 makes of the tensors that the step itself reads here, so that what differs
            from it is this node's doing.
        reads: what the op behind it reads of float tensors, with their names, as the step has it.
    """

    node: fx.Node
    ours: torch.Tensor
    full: torch.Tensor
    exact: torch.Tensor
    own: torch.Tensor
    reads: tuple[tuple[str, torch.Tensor], ...]


def lockstep(moment: Moment) -> Iterator[Seen]:
    """Run a gradient graph and yield its float tensors in the order in which they are made.

    Nothing is averaged over processes: each can look at what it has made itself.
    Random numbers are drawn once, for all three runs. An op without a kernel for FP64 runs in FP32.
    A tensor is freed after the last node that reads it.
    """
    shown = {node.name: node for node in moment.step.gradient.graph.nodes}
    graph = copy_graph(moment.step.gradient)
    drop_collectives(graph.graph)
    if all(value.device.type == "cpu" for value in moment.values.values()):
        emulate_half(graph)
    ours = AsIs(graph)
    wide = (Wide(graph, FULL), Wide(graph, EXACT), _Own(graph, ours))
    freed, forgotten = last_reads(graph.graph), last_reads(moment.step.gradient.graph)
    made: dict[fx.Node, torch.Tensor] = {}
    # Without grad mode oneDNN's LSTM would keep nothing for the backward that stands in the graph.
    with drawn_again(moment.random), torch.enable_grad():
        for node in graph.graph.nodes:
            if node.op == "output":
                return
            ours.run(node, moment)
            for run in wide:
                run.run(node, moment, ours.values[node])
            named = shown.get(EMULATES.get(node, node.name))
            if named is not None:
                value = ours.values[node]
                if is_float(value):
                    made[named] = value
                    reads = tuple(
                        (item.name, made[item]) for item in read_by(named) if item in made
                    )
                    full, exact, own = (run.values[node] for run in wide)
                    yield Seen(named, value, full, exact, own, reads)
                for dead in forgotten.get(named, ()):
                    made.pop(dead, None)
            for dead in freed.get(node, ()):
                for values in (ours.values, *(run.values for run in wide)):
                    del values[dead]


def is_float(value: object) -> bool:
    """Whether a node's value is a tensor of floats."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class AsIs:
    """A graph's values as the graph says."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self.values: dict[fx.Node, Any] = {}

    def run(self, node: fx.Node, moment: Moment) -> None:
        """Run one node whose inputs have run."""
        if node.op == "placeholder":
            self.values[node] = moment.values[SLOT[node]]
        elif node.op == "get_attr":
            self.values[node] = getattr(self._module, str(node.target))
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda item: self.values[item])
            self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]


class Wide:
    """A graph's values in one wide format, with the masters for weights.

    Attributes:
        values: per node that has run and is still needed.
        narrower: the nodes that had to run in FP32, having no kernel for FP64.
    """

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype
        self._inner: dict[fx.GraphModule, fx.GraphModule] = {}
        self.values: dict[fx.Node, Any] = {}
        self.narrower: set[fx.Node] = set()

    def run(self, node: fx.Node, moment: Moment, drawn: Any) -> None:
        """Run one node whose inputs have run; take over what the first run has drawn."""
        if node.op == "placeholder":
            slot = SLOT[node]
            value = moment.masters.get(slot, moment.values[slot])
            self.values[node] = _in(value, self._dtype)
        elif node.op == "get_attr":
            self.values[node] = self._constant(getattr(self._module, str(node.target)))
        elif draws(node) or op_name(node) in UNWRITTEN:
            self.values[node] = self._drawn(node, drawn)
        else:
            self.values[node] = self._call(node)

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, fx.GraphModule):
            return _in(value, self._dtype)
        if value not in self._inner:
            self._inner[value] = copied = copy_graph(value)
            for graph in all_graphs(copied):
                for node in graph.graph.nodes:
                    node.args, node.kwargs = told(node, self._dtype)
                graph.recompile()
        return self._inner[value]

    def _drawn(self, node: fx.Node, drawn: Any) -> Any:
        if op_name(node) == "native_dropout":
            source, rate = self.values[node.args[0]], float(node.args[1])  # type: ignore[index, arg-type]
            return source * drawn[1] / (1.0 - rate), drawn[1]
        return fx.node.map_aggregate(drawn, lambda item: _in(item, self._dtype))

    def _read(self, item: fx.Node) -> Any:
        return self.values[item]

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg(told(node, self._dtype), self._read)
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError):
            if self._dtype is FULL or is_higher_order(node):
                raise
        self.narrower.add(node)
        args, kwargs = fx.map_arg(told(node, FULL), lambda item: all_in(self._read(item), FULL))
        return all_in(node.target(*args, **kwargs), self._dtype)  # type: ignore[operator]


class _Own(Wide):
    """What FP64 makes, node by node, of the values of another run."""

    def __init__(self, module: fx.GraphModule, ours: AsIs) -> None:
        super().__init__(module, EXACT)
        self._ours = ours

    def run(self, node: fx.Node, moment: Moment, drawn: Any) -> None:
        """Run one node on what the other run reads."""
        if EMULATES.get(node, node.name) not in ("", node.name):
            # What this cast rounds is the result of an op, and not yet ours.
            self.values[node] = self.values[node.all_input_nodes[0]]
        else:
            super().run(node, moment, drawn)

    def _read(self, item: fx.Node) -> Any:
        value = self._ours.values[item]
        # Of a graph inside it is the wide twin that runs.
        return self.values[item] if isinstance(value, fx.GraphModule) else all_in(value, EXACT)


def told(node: fx.Node, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a node's arguments with a wide format wherever they name a format of floats."""
    args = list(node.args)
    if op_name(node) in ("_softmax", "_log_softmax"):
        args[2] = False  # widening what is wide already is an error
    floats = (torch.float16, torch.bfloat16, torch.float32)

    def wide(item: Any) -> Any:
        return dtype if isinstance(item, torch.dtype) and item in floats else item

    return fx.node.map_aggregate((tuple(args), dict(node.kwargs)), wide)


def _in(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if is_float(value) else value


def all_in(value: Any, dtype: torch.dtype) -> Any:
    """Return a node's value, a tensor or several, with its floats in a wide format."""
    return fx.node.map_aggregate(value, lambda item: _in(item, dtype))


def read_by(node: fx.Node) -> list[fx.Node]:
    """Return what the op reads that makes a tensor, also if it makes several."""
    inputs = node.all_input_nodes
    return inputs[0].all_input_nodes if node.target is operator.getitem else inputs


def last_reads(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return per node the nodes that nothing reads after it, neither it nor an item of its results.

    What an op read is kept for the items of its results, of which a person is told what made them.
    """
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for item in {*node.all_input_nodes, *read_by(node)}:
            last[item] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for node, reader in last.items():
        found.setdefault(reader, []).append(node)
    return found
