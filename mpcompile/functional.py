"""Make a captured forward graph free of in-place ops on its intermediate tensors."""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.torch_private import functional_overload, is_view, mutated_inputs


def make_functional(
    program: torch.export.ExportedProgram,
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the program's graph with in-place ops on intermediate tensors replaced.

    What remains is the writing of buffers (``add_`` on a step counter, batch norm's statistics),
    which `differentiate` turns into results of the gradient graph. The second value names the
    buffers whose next value the graph already returns, in front of its other results.

    An in-place op on a tensor of which no view is read later becomes its functional twin. Where
    views make that unsafe, torch's own functionalization does it, at the price of a second trace.
    """
    module: fx.GraphModule = program.graph_module
    buffers = program.graph_signature.inputs_to_buffers
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    for node in order:
        for target in mutated_inputs(node):
            if target.name in buffers:
                continue
            functional = functional_overload(node)
            if functional is None or target.op == "placeholder" or _has_views(target):
                return _by_torch(program)
            node.target = functional
            later = {user for user in target.users if order[user] > order[node]}
            target.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    module.graph.lint()
    module.recompile()
    return module, ()


def _has_views(node: fx.Node) -> bool:
    return is_view(node) or any(is_view(user) for user in node.users)


def _by_torch(program: torch.export.ExportedProgram) -> tuple[fx.GraphModule, tuple[str, ...]]:
    functional = program.run_decompositions({})
    module: fx.GraphModule = functional.graph_module
    mutated = functional.graph_signature.buffers_to_mutate
    (returned,) = module.graph.output_node().args
    assert isinstance(returned, list | tuple)
    names = [node.name for node in returned if isinstance(node, fx.Node)]
    return module, tuple(mutated[name] for name in names if name in mutated)
