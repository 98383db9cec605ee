"""Make a captured forward graph free of in-place ops on its intermediate tensors."""

from __future__ import annotations

import torch
from torch import fx

from mpcompile.torch_private import functional_overload, is_view, mutated_inputs


def make_functional(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Return the program's graph with in-place ops on intermediate tensors replaced.

    What remains is the writing of buffers (``add_`` on a step counter, batch norm's statistics),
    which `differentiate` turns into results of the gradient graph.

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
    return module


def _has_views(node: fx.Node) -> bool:
    return is_view(node) or any(is_view(user) for user in node.users)


def _by_torch(program: torch.export.ExportedProgram) -> fx.GraphModule:
    functional = program.run_decompositions({})
    module: fx.GraphModule = functional.graph_module
    graph = module.graph
    buffers = functional.graph_signature.inputs_to_buffers
    inputs = {
        name: node for node in graph.nodes if node.op == "placeholder" for name in [node.name]
    }
    output = graph.output_node()
    (returned,) = output.args
    assert isinstance(returned, list | tuple)
    results = list(returned)
    mutated = functional.graph_signature.buffers_to_mutate
    with graph.inserting_before(output):
        for result in results[: len(mutated)]:
            fqn = mutated[result.name]
            target = next(inputs[name] for name, owner in buffers.items() if owner == fqn)
            graph.call_function(torch.ops.aten.copy_.default, (target, result))
    output.args = (tuple(results[len(mutated) :]),)
    graph.lint()
    module.recompile()
    return module
