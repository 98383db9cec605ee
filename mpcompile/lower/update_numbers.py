"""Split the numbers of the update from its arithmetic on weights.

``lr / (1 - beta ** step)`` is the same for each weight, and FP64. Inductor would write a chain of
0-d tensors into every kernel that reads its end, and compute it again for each element: with Adam
two powers in FP64. So these ops become their own graph, which runs first; the update reads its
results.
"""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.torch_private.graphs import copy_graph, module_of
from mpcompile.torch_private.ops import draws, is_view, mutated_inputs


def split_numbers(update: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return the graph of an update's numbers, and the update that reads its results.

    A number is a 0-d tensor computed only from inputs and other numbers. A learning rate over a
    bias correction is one; the finite flag is not, because it is reduced from the gradients.

    Args:
        update: its in-place writes come last; not changed.

    Returns:
        A graph of some of the update's inputs, which returns the numbers that the rest reads, and
        the rest, which takes all of the update's inputs and then the numbers.
    """
    rest = copy_graph(update)
    graph = rest.graph
    numbers = _numbers(graph)
    # No input may share memory with another, so both sides make views of inputs themselves.
    own = [node for node in graph.nodes if node in numbers and is_view(node)]
    inner = numbers.difference(own)
    read = [node for node in graph.nodes if node in inner and not inner.issuperset(node.users)]
    first = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        if numbers.intersection(node.users):
            copies[node] = first.placeholder(node.name)
            copies[node].meta = dict(node.meta)
    for node in graph.nodes:
        if node in numbers:
            copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in read))
    last = graph.find_nodes(op="placeholder")[-1]
    for node in read:
        with graph.inserting_after(last):
            last = graph.placeholder(f"number_{node.name}")
        last.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(last)
    graph.eliminate_dead_code()
    graph.lint()
    first.lint()
    return module_of(first, update), rest


def _numbers(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        if (
            node.op == "call_function"
            and isinstance(value, torch.Tensor)
            and value.dim() == 0
            and node.all_input_nodes
            and all(item.op == "placeholder" or item in found for item in node.all_input_nodes)
            and not mutated_inputs(node)
            and not draws(node)
        ):
            found.add(node)
    return found
