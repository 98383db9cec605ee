"""Run forward and backward of a step together with the same step in FP32 and FP64, node by node.

All three runs use the same graph, so every node can be compared, also in backward. In the wide
runs every float tensor has the wide dtype, casts change nothing, and weights are the masters. This
is a separate interpreter: it neither runs nor changes compiled code.
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
from mpcompile.step.graph import StepGraph, results
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import draws, is_higher_order, op_name
from mpcompile.train.train_step import TrainStep

FULL, EXACT = torch.float32, torch.float64
"""The wide dtypes: that of plain PyTorch, and that of the reference."""

UNWRITTEN = frozenset(
    "empty empty_like new_empty empty_strided new_empty_strided empty_permuted".split()
)
"""Ops that do not initialize their result."""


@dataclass(frozen=True)
class Moment:
    """All inputs of a gradient graph in one step, so that the graph can run again.

    Attributes:
        step: the step graph.
        values: the inputs by slot, as the step reads them.
        masters: the FP32 weights by the slot of their working copy.
        random: the state of the random generators before the step.
    """

    step: StepGraph
    values: Mapping[str, torch.Tensor]
    masters: Mapping[str, torch.Tensor]
    random: RandomState


def moment(step: TrainStep, *batch: torch.Tensor) -> Moment:
    """Return the inputs that a step would read now; the state is not copied."""
    values = step.values(*batch)
    device = next(iter(values.values())).device
    return Moment(step.graph_of(*batch), values, step.masters(*batch), random_state(device))


@dataclass(frozen=True, slots=True)
class Seen:
    """One float tensor in three precisions.

    Attributes:
        node: a node of the step's gradient graph.
        ours: the tensor of the step; on a CPU in pseudo FP16.
        full: the tensor in FP32.
        exact: the tensor in FP64.
        own: the node's result in FP64 on the step's own inputs; the difference between it and
            `ours` is the error of this node alone.
        reads: names and values of the float tensors that the op reads in the step.
    """

    node: fx.Node
    ours: torch.Tensor
    full: torch.Tensor
    exact: torch.Tensor
    own: torch.Tensor
    reads: tuple[tuple[str, torch.Tensor], ...]


def lockstep(moment: Moment) -> Iterator[Seen]:
    """Run a gradient graph and yield its float tensors in the order in which they are made.

    There is no all-reduce: each process sees its own tensors. Random numbers are drawn once, for
    all three runs. An op without a kernel for FP64 runs in FP32. A tensor is freed after the last
    node that reads it.
    """
    shown = {node.name: node for node in moment.step.gradient.graph.nodes}
    graph = _alone(moment)
    ours = AsIs(graph)
    wide = (Wide(graph, FULL), Wide(graph, EXACT), _Own(graph, ours))
    freed, forgotten = last_reads(graph.graph), last_reads(moment.step.gradient.graph)
    made: dict[fx.Node, torch.Tensor] = {}
    # Without grad mode oneDNN's LSTM would not keep the tensors that the graph's backward reads.
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


def results_of(moment: Moment, *wide: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """Run a gradient graph and return its results by slot: the step's own, then wide ones.

    It computes what `lockstep` computes, without the tensors between.

    Args:
        moment: the inputs.
        wide: dtypes to run the graph in as well, as `lockstep` does.
    """
    graph = _alone(moment)
    ours = AsIs(graph)
    others = [Wide(graph, dtype) for dtype in wide]
    freed = last_reads(graph.graph)
    with drawn_again(moment.random), torch.enable_grad():
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            ours.run(node, moment)
            for run in others:
                run.run(node, moment, ours.values[node])
            for dead in freed.get(node, ()):
                for values in (ours.values, *(run.values for run in others)):
                    del values[dead]
    made = results(graph.graph)
    return [
        {name: values[node].detach() for name, node in made.items()}
        for values in (ours.values, *(run.values for run in others))
    ]


def _alone(moment: Moment) -> fx.GraphModule:
    """Return a gradient graph as this process alone runs it; on a CPU in pseudo FP16."""
    graph = copy_graph(moment.step.gradient)
    drop_collectives(graph.graph)
    if all(value.device.type == "cpu" for value in moment.values.values()):
        emulate_half(graph)
    return graph


def is_float(value: object) -> bool:
    """Whether a node's value is a tensor of floats."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class AsIs:
    """The values of a graph in the graph's own dtypes."""

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
    """The values of a graph in one wide dtype, with the masters as weights.

    Attributes:
        values: the values of the nodes that have run and are still needed.
        narrower: the nodes that ran in FP32 because they have no kernel for FP64.
    """

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype
        self._inner: dict[fx.GraphModule, fx.GraphModule] = {}
        self.values: dict[fx.Node, Any] = {}
        self.narrower: set[fx.Node] = set()

    def run(self, node: fx.Node, moment: Moment, drawn: Any) -> None:
        """Run one node whose inputs have run; random results come from the first run."""
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
    """The result of each single node in FP64 on the values of another run."""

    def __init__(self, module: fx.GraphModule, ours: AsIs) -> None:
        super().__init__(module, EXACT)
        self._ours = ours

    def run(self, node: fx.Node, moment: Moment, drawn: Any) -> None:
        """Run one node on the inputs of the other run."""
        if EMULATES.get(node, node.name) not in ("", node.name):
            # This cast rounds an op's result, and `own` is the result before rounding.
            self.values[node] = self.values[node.all_input_nodes[0]]
        else:
            super().run(node, moment, drawn)

    def _read(self, item: fx.Node) -> Any:
        value = self._ours.values[item]
        # A graph inside the graph runs as its wide copy.
        return self.values[item] if isinstance(value, fx.GraphModule) else all_in(value, EXACT)


def told(node: fx.Node, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a node's arguments with every float dtype replaced by a wide dtype."""
    args = list(node.args)
    if op_name(node) in ("_softmax", "_log_softmax"):
        args[2] = False  # the op's own widening fails on an input that is wide already
    floats = (torch.float16, torch.bfloat16, torch.float32)

    def wide(item: Any) -> Any:
        return dtype if isinstance(item, torch.dtype) and item in floats else item

    return fx.node.map_aggregate((tuple(args), dict(node.kwargs)), wide)


def _in(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if is_float(value) else value


def all_in(value: Any, dtype: torch.dtype) -> Any:
    """Return a node's value, one tensor or several, with its floats in a wide dtype."""
    return fx.node.map_aggregate(value, lambda item: _in(item, dtype))


def read_by(node: fx.Node) -> list[fx.Node]:
    """Return the inputs of the op that makes a tensor, also if the op makes several tensors."""
    inputs = node.all_input_nodes
    return inputs[0].all_input_nodes if node.target is operator.getitem else inputs


def last_reads(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return, per node, the nodes whose values are not needed after it.

    An op's inputs stay until the last item of its results has run, because reports name the inputs
    of each item.
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
