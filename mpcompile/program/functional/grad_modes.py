"""Regions without gradients (``torch.no_grad``) in an exported program: inlined, with ``detach``.

`torch.export` puts the ops of such a region into an inner graph. Its ``run_decompositions`` inlines
that graph and forgets the mode, so gradients flow through what they must not (torch 2.13, 2.14).
Here each tensor that such an op reads is detached, so the same ops can run in any mode.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mpcompile.program.marks import NO_GRAD
from mpcompile.torch_private.ops import mutated_inputs, op_name

_ATEN = torch.ops.aten


def inline_grad_modes(module: fx.GraphModule, differentiable: set[str]) -> set[fx.Node]:
    """Inline the regions of a graph; return the nodes whose values may require a gradient.

    Ops inside a region without gradients get the mark `NO_GRAD`.

    Args:
        module: an exported graph; it is changed.
        differentiable: names of the placeholders that require a gradient.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if op_name(node) == "wrap_with_set_grad_enabled":
            _inline(module, node)
    _write_to_bases(graph)
    requires: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "placeholder":
            if node.name in differentiable:
                requires.add(node)
            continue
        if node.op != "call_function":
            continue
        written = mutated_inputs(node)
        if node in NO_GRAD:
            for source in node.all_input_nodes:
                if (
                    source in requires
                    and source not in written
                    and node.target is not operator.getitem
                ):
                    with graph.inserting_before(node):
                        node.replace_input_with(source, _detached(graph, source))
            if any(target in requires for target in written):
                requires.add(node)
        elif node.target is not _ATEN.detach.default and requires.intersection(
            node.all_input_nodes
        ):
            requires.add(node)
            requires.update(written)
    return requires


def _detached(graph: fx.Graph, source: fx.Node) -> fx.Node:
    node = graph.call_function(_ATEN.detach.default, (source,))
    node.meta = {key: value for key, value in source.meta.items() if key != NO_GRAD.key}
    return node


def _inline(module: fx.GraphModule, call: fx.Node) -> None:
    """Put the ops of a region in place of its call."""
    enabled, held, *arguments = call.args
    assert isinstance(held, fx.Node)
    inner: Any = getattr(module, str(held.target))
    graph = module.graph
    values: dict[fx.Node, Any] = dict(
        zip(inner.graph.find_nodes(op="placeholder"), arguments, strict=True)
    )
    with graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            values[node] = new = graph.node_copy(node, values.__getitem__)
            if not enabled and node.op == "call_function":
                NO_GRAD[new] = True
        for node in inner.graph.find_nodes(op="get_attr"):
            if not hasattr(module, str(node.target)):
                setattr(module, str(node.target), getattr(inner, str(node.target)))
    (results,) = inner.graph.output_node().args
    for item in list(call.users):
        item.replace_all_uses_with(values[results[item.args[1]]])
        graph.erase_node(item)
    graph.erase_node(call)
    if not held.users:
        graph.erase_node(held)


def _write_to_bases(graph: fx.Graph) -> None:
    """Let an op that writes through ``tensor.detach()`` or ``tensor.data`` write to the tensor."""
    for node in list(graph.find_nodes(op="call_function", target=_ATEN.detach.default)):
        (base,) = node.args
        if not any(node in mutated_inputs(user) for user in node.users):
            continue
        for user in list(node.users):
            if node in mutated_inputs(user):
                NO_GRAD[user] = True
                user.replace_input_with(node, base)
            else:
                with graph.inserting_before(user):
                    user.replace_input_with(node, _detached(graph, base))
        graph.erase_node(node)
