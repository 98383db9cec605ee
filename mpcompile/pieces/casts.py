"""Plan a forward graph that another tool has captured, and insert its casts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from mpcompile.passes.order import forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.plan.dataflow import Dataflow, Fixed
from mpcompile.plan.given import decide
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.describe import dataflow
from mpcompile.program.unfit_constants import unfit_constants, unfit_reasons


def insert_casts(
    module: fx.GraphModule,
    fixed: Mapping[str, Fixed],
    constants: Mapping[str, torch.Tensor],
    policy: Policy,
    plan: Plan | None = None,
) -> tuple[Dataflow, Plan]:
    """Plan a forward graph and insert the casts; return the planner's input and the plan.

    Args:
        module: FP32 composite ops without writes, with ``meta["val"]``; changed.
        fixed: why the dtype of an input may not change, by placeholder name.
        constants: the buffers that are never written, by placeholder name.
        policy: gives the wished precision of each op.
        plan: decisions that come before those of the policy.
    """
    unfit = unfit_constants(module, constants, plan.precision if plan else policy.precision)
    flow = dataflow(module, fixed, policy, unfit_reasons(module, unfit), constants)
    plan = decide(flow, policy.precision, plan)
    run_passes(module, forward_passes(plan), _lint)
    for graph in all_graphs(module):
        graph.recompile()
    return flow, plan


def _lint(module: fx.GraphModule) -> None:
    for graph in all_graphs(module):
        graph.graph.lint()
