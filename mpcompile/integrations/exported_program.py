"""Rewrite a graph from `torch.export` into mixed precision."""

from __future__ import annotations

import torch

from mpcompile.pieces.casts import insert_casts
from mpcompile.plan.dataflow import Fixed
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.program.control_flow import all_graphs
from mpcompile.torch_private.graphs import copy_graph, new_program
from mpcompile.torch_private.ops import mutated_inputs
from mpcompile.torch_private.versions import warn_if_untried


def rewrite(
    program: torch.export.ExportedProgram,
    policy: Policy | None = None,
    plan: Plan | None = None,
) -> torch.export.ExportedProgram:
    """Rewrite an exported forward graph into mixed precision.

    Inputs, outputs and parameters keep their dtypes; the casts are nodes of the graph. The result
    lacks what `torch.export` has dropped: hooks and the backward passes of custom Functions. If the
    program writes to buffers, ``run_decompositions`` makes it functional, and forgets
    ``torch.no_grad`` and ``detach`` (torch 2.13 to 2.15). To train it use `mpcompile.compile`.

    Args:
        program: a program from `torch.export.export`; not changed.
        policy: default: FP16 by the op table.
        plan: decisions that come before those of the policy; it must be of this same program.

    Raises:
        BadInput: the plan is of another graph, or overrides of the policy contradict each other.
    """
    warn_if_untried()
    policy = policy or Policy()
    if any(
        mutated_inputs(node)
        for graph in all_graphs(program.graph_module)
        for node in graph.graph.nodes
    ):
        program = program.run_decompositions({})  # makes the graph functional, decomposes nothing
    module = copy_graph(program.graph_module)
    signature = program.graph_signature
    fixed = dict.fromkeys(signature.inputs_to_parameters, Fixed.PARAMETER)
    fixed |= dict.fromkeys(signature.inputs_to_buffers, Fixed.BUFFER)
    held = {**program.state_dict, **program.constants}
    buffers = {
        node: held[name]
        for node, name in [
            *signature.inputs_to_buffers.items(),
            *signature.inputs_to_lifted_tensor_constants.items(),
        ]
        if name not in signature.buffers_to_mutate.values() and name in held
    }
    insert_casts(module, fixed, buffers, policy, plan)
    return new_program(program, module)
