"""Run a part of a step's gradient graph again, alone, on the values that the step had."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mpcompile.numerics.lockstep import (
    EXACT,
    FULL,
    UNWRITTEN,
    AsIs,
    Moment,
    Wide,
    all_in,
    last_reads,
)
from mpcompile.numerics.node_errors import explained_by, relative_error
from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.program.casts import CAST
from mpcompile.program.marks import EMULATES, SLOT
from mpcompile.program.random_state import drawn_again
from mpcompile.torch_private.graphs import copy_graph, rename
from mpcompile.torch_private.ops import draws, is_higher_order, mutated_inputs, op_name

_ATEN = torch.ops.aten
_LITERALS = (
    fx.Node, int, float, complex, str, torch.dtype, torch.device, torch.layout,
    torch.memory_format, type(None),
)  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """A node of a step with all nodes that it depends on.

    Attributes:
        moment: the inputs of the step.
        graph: the gradient graph up to the node; working copies are casts of their masters, and a
            dropout is a multiplication by the mask that it drew.
        arithmetic: the same graph as the step computes it: on a CPU in pseudo FP16.
        rounded: for each node name of ``graph``, the node of ``arithmetic`` with its value.
        target: the node, in ``graph``.
        values: the step's values, by the names of the nodes that the target depends on.
    """

    moment: Moment
    graph: fx.GraphModule
    arithmetic: fx.GraphModule
    rounded: Mapping[str, fx.Node]
    target: fx.Node
    values: Mapping[str, Any]

    def node(self, name: str) -> fx.Node:
        """Return a node of ``graph``."""
        found: fx.Node = next(node for node in self.graph.graph.nodes if node.name == name)
        return found


@dataclass(frozen=True)
class Outcome:
    """The result of a part of a graph on some inputs.

    Attributes:
        ours: the step's values, by node of ``Captured.arithmetic``.
        exact: the values in FP64, by node of ``Captured.graph``.
        narrower: the nodes that ran in FP32 because they have no kernel for FP64.
        count: how many numbers the result has.
        nonfinite: how many numbers are not finite, but finite in FP64.
        vanished: how many numbers are zero, but not in FP64.
        error: see `NodeError.error`.
        explained: see `NodeError.explained`.
    """

    ours: Mapping[fx.Node, Any]
    exact: Mapping[fx.Node, Any]
    narrower: Collection[fx.Node]
    count: int
    nonfinite: int
    vanished: int
    error: float
    explained: float

    def limit(self, tolerance: float) -> float:
        """Return the error above which the part fails."""
        return max(tolerance, self.explained)

    def fails(self, tolerance: float) -> bool:
        """Whether numbers are not finite, or the error is not explained by rounding alone."""
        return self.nonfinite > 0 or self.error > self.limit(tolerance)


def capture_values(moment: Moment, name: str) -> Captured:
    """Run a step's gradient graph up to a node and keep all values that the node depends on.

    Args:
        moment: the inputs of the step.
        name: a node of the gradient graph.
    """
    moment = replace(moment, values={**moment.values, **moment.masters})
    graph = _prepared(moment)
    target = next(node for node in graph.graph.nodes if node.name == name)
    arithmetic = copy_graph(graph)
    if all(value.device.type == "cpu" for value in moment.values.values()):
        emulate_half(arithmetic)
    rounded = {EMULATES.get(node, node.name): node for node in arithmetic.graph.nodes}
    wanted = {node.name for node in between(target, ())}
    run, freed = AsIs(arithmetic), last_reads(arithmetic.graph)
    values: dict[str, Any] = {}
    # Without grad mode oneDNN's LSTM would not keep the tensors that the graph's backward reads.
    with drawn_again(moment.random), torch.enable_grad():
        for node in arithmetic.graph.nodes:
            run.run(node, moment)
            if EMULATES.get(node, node.name) in wanted:
                values[EMULATES.get(node, node.name)] = run.values[node]
            if node is rounded[name]:
                break
            for dead in freed.get(node, ()):
                del run.values[dead]
    return Captured(moment, graph, arithmetic, rounded, target, values)


def between(target: fx.Node, stops: Collection[fx.Node]) -> list[fx.Node]:
    """Return a node and the nodes that it depends on, in order, up to the nodes `stops`."""
    found: set[fx.Node] = set()
    waiting = [target]
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stops:
            found.add(node)
            waiting += node.all_input_nodes
    return sorted(found)


def maker(node: fx.Node) -> fx.Node | None:
    """Return the op that makes a node's value; None for an input of the graph."""
    while node.target is operator.getitem:
        node = node.all_input_nodes[0]
    return node if node.op == "call_function" else None


def makers(node: fx.Node) -> Iterable[fx.Node]:
    """Return the ops whose results an op reads, each once."""
    found = (maker(item) for item in node.all_input_nodes)
    return dict.fromkeys(item for item in found if item is not None)


def inputs_of(target: fx.Node, ops: Collection[fx.Node]) -> list[fx.Node]:
    """Return the inputs of a part of a graph, in the order of the graph.

    Args:
        target: the part's result.
        ops: the part's ops.
    """
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    waiting = [target]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if maker(node) in ops:
            waiting += node.all_input_nodes
        else:
            found.add(node)
    return sorted(found)


def obstacle(node: fx.Node) -> str:
    """Return why a script with captured values cannot contain an op, or ``""``."""
    if is_higher_order(node):
        return "calls graphs of its own"
    if draws(node):
        return "draws random numbers"
    if op_name(node) in UNWRITTEN:
        return "reads memory that was never written"
    if mutated_inputs(node):
        return "writes to its inputs"
    if getattr(node.target, "namespace", "") not in ("aten", "prims"):
        return "is not an op of PyTorch itself"
    found: list[object] = []
    fx.node.map_aggregate((node.args, dict(node.kwargs)), found.append)
    strange = next((item for item in found if not isinstance(item, _LITERALS)), None)
    return f"has an argument of type {type(strange).__name__}" if strange is not None else ""


def outcome(captured: Captured, inputs: Mapping[str, Any]) -> Outcome | None:
    """Run a part of a graph as the step does, in FP64 and in FP32, all on the same inputs.

    Args:
        captured: the graph, and the node that is the part's result.
        inputs: the values that the part reads, by node name.

    Returns:
        The outcome, or None if the part does not run.
    """
    try:
        with torch.enable_grad():
            ours = run_as_the_step(captured, inputs)
            exact, full = (run_wide(captured, inputs, dtype) for dtype in (EXACT, FULL))
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    target = captured.target
    value, true = ours[captured.rounded[target.name]], exact.values[target]
    good = true.isfinite()
    return Outcome(
        ours=ours,
        exact=exact.values,
        narrower=exact.narrower,
        count=value.numel(),
        nonfinite=int((~value.isfinite() & good).sum()),
        vanished=int(((value == 0) & (true != 0)).sum()),
        error=relative_error(value, true),
        explained=explained_by(relative_error(full.values[target], true)),
    )


def run_as_the_step(captured: Captured, inputs: Mapping[str, Any]) -> dict[fx.Node, Any]:
    """Return the values of a part's nodes of ``arithmetic`` on inputs; see `outcome`."""
    run = AsIs(captured.arithmetic)
    run.values = {captured.rounded[name]: value for name, value in inputs.items()}
    for node in between(captured.rounded[captured.target.name], set(run.values)):
        run.run(node, captured.moment)
    return run.values


def run_wide(captured: Captured, inputs: Mapping[str, Any], dtype: torch.dtype) -> Wide:
    """Run a part in a wide dtype; see `outcome`."""
    run = Wide(captured.graph, dtype)
    given = [node for node in captured.graph.graph.nodes if node.name in inputs]
    run.values = {node: all_in(inputs[node.name], dtype) for node in given}
    for node in between(captured.target, set(given)):
        run.run(node, captured.moment, None)
    return run


def _prepared(moment: Moment) -> fx.GraphModule:
    """Return the gradient graph with a cast per working copy, and dropouts that read their mask."""
    module = copy_graph(moment.step.gradient)
    graph = module.graph
    entering = list(graph.find_nodes(op="placeholder"))
    for node in entering:
        if SLOT[node] in moment.masters:
            with graph.inserting_after(entering[-1]):
                cast = graph.call_function(CAST, (node,), {"dtype": node.meta["val"].dtype})
            _take_over(cast, node, f"{node.name}_master")
            node.meta = {**node.meta, "val": node.meta["val"].to(FULL)}
    for node in graph.find_nodes(op="call_function", target=_ATEN.native_dropout.default):
        if draws(node) and node.args[1] < 1:
            _multiply_by_mask(graph, node)
    graph.lint()
    return module


def _multiply_by_mask(graph: fx.Graph, dropout: fx.Node) -> None:
    """Compute a dropout's result in PyTorch's order: times the mask, then times the scale."""
    source, rate = dropout.args[0], dropout.args[1]
    result = next((user for user in dropout.users if user.args[1] == 0), None)
    if result is None:
        return
    with graph.inserting_after(dropout):
        mask = graph.call_function(operator.getitem, (dropout, 1))
    with graph.inserting_after(mask):
        kept = graph.call_function(_ATEN.mul.Tensor, (source, mask))
    with graph.inserting_after(kept):
        scaled = graph.call_function(_ATEN.mul.Tensor, (kept, 1.0 / (1.0 - rate)))  # type: ignore[operator]
    mask.meta = {**dropout.meta, "val": dropout.meta["val"][1]}
    kept.meta = dict(result.meta)
    _take_over(scaled, result, f"{result.name}_drawn")


def _take_over(node: fx.Node, old: fx.Node, renamed: str) -> None:
    """Give a node the name and the readers of an old node, which is renamed."""
    name = old.name
    old.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    node.meta = dict(old.meta)
    rename(old, renamed)
    node.name = name
