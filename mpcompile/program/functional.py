"""Make a captured forward graph functional: no op writes to a tensor, buffers become results."""

from __future__ import annotations

import operator

import torch
from torch import fx

from mpcompile.program.control_flow import all_graphs
from mpcompile.torch_private.graphs import module_of
from mpcompile.torch_private.ops import functional_overload, is_view, mutated_inputs

_ATEN = torch.ops.aten


def make_functional(
    program: torch.export.ExportedProgram,
) -> tuple[torch.export.ExportedProgram, fx.GraphModule, tuple[str, ...]]:
    """Return a program, its graph without mutation, and the names of the buffers it updates.

    The next values of those buffers are the graph's first results, in the order of the names. The
    program's signature describes the graph's inputs.

    An in-place op becomes its functional twin, and later readers of the tensor read the result. If
    views make that unsafe, torch's own functionalization does it, at the cost of a second trace.
    """
    graph = program.graph
    buffers = program.graph_signature.inputs_to_buffers
    order = {node: position for position, node in enumerate(graph.nodes)}
    inside = [
        node for module in all_graphs(program.graph_module)[1:] for node in module.graph.nodes
    ]
    if not all(_safe(node, buffers) for node in order) or any(map(mutated_inputs, inside)):
        return _by_torch(program)
    newest: dict[str, fx.Node] = {}
    for node in order:
        if node.target is _ATEN.batch_norm.default and _updates_statistics(node):
            for target, value in _functional_norm(graph, node):
                _replace_later(target, value, node, order)
                newest[_buffer_of(target, newest, buffers)] = value
            graph.erase_node(node)
            continue
        for target in mutated_inputs(node):
            node.target = functional_overload(node)
            _replace_later(target, node, node, order)
            if target.name in buffers or target in newest.values():
                newest[_buffer_of(target, newest, buffers)] = node
    output = graph.output_node()
    (returned,) = output.args
    assert isinstance(returned, list | tuple)
    output.args = ((*newest.values(), *returned),)
    graph.lint()
    return program, module_of(graph, program.graph_module), tuple(newest)


def _safe(node: fx.Node, buffers: dict[str, str]) -> bool:
    """Whether the node writes to no tensor, or only to tensors without views."""
    return all(
        functional_overload(node) is not None
        and not is_view(target)
        and not any(is_view(user) for user in target.users)
        and (target.op != "placeholder" or target.name in buffers)
        for target in mutated_inputs(node)
    )


def _updates_statistics(norm: fx.Node) -> bool:
    return norm.args[5] is True and isinstance(norm.args[3], fx.Node)


def _functional_norm(graph: fx.Graph, norm: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Turn a training batch norm into the op that returns its statistics; return old and new."""
    value = norm.meta["val"]
    mean, variance = norm.args[3:5]
    assert isinstance(mean, fx.Node)
    assert isinstance(variance, fx.Node)
    with graph.inserting_before(norm):
        whole = graph.call_function(
            _ATEN._native_batch_norm_legit_functional.default, norm.args[:8]
        )
        parts = [graph.call_function(operator.getitem, (whole, index)) for index in (0, 3, 4)]
    statistics = mean.meta["val"]
    whole.meta = {**norm.meta, "val": (value, *[statistics] * 4)}
    for part, tensor in zip(parts, (value, statistics, statistics), strict=True):
        part.meta = {**norm.meta, "val": tensor}
    norm.replace_all_uses_with(parts[0])
    return [(mean, parts[1]), (variance, parts[2])]


def _replace_later(old: fx.Node, new: fx.Node, since: fx.Node, order: dict[fx.Node, int]) -> None:
    """Let the readers of `old` after a point of the graph read `new` instead."""
    later = {user for user in old.users if order.get(user, -1) > order[since]}
    old.replace_all_uses_with(new, delete_user_cb=later.__contains__)


def _buffer_of(target: fx.Node, newest: dict[str, fx.Node], buffers: dict[str, str]) -> str:
    for name, node in newest.items():
        if node is target:
            return name
    return buffers[target.name]


def _by_torch(
    program: torch.export.ExportedProgram,
) -> tuple[torch.export.ExportedProgram, fx.GraphModule, tuple[str, ...]]:
    functional = program.run_decompositions({})
    mutated = functional.graph_signature.buffers_to_mutate
    (returned,) = functional.graph.output_node().args
    assert isinstance(returned, list | tuple)
    names = [node.name for node in returned if isinstance(node, fx.Node)]
    written = tuple(mutated[name] for name in names if name in mutated)
    return functional, module_of(functional.graph, functional.graph_module), written
