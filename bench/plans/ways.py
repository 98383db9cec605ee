"""Gradient graphs of one captured program, made in different ways, for benches to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import fx

from bench.plans import autocast
from mpcompile.passes.order import GRADIENT, forward_passes
from mpcompile.passes.runner import run_passes
from mpcompile.pipeline import describe
from mpcompile.plan.given import decide
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision
from mpcompile.program.capture import Forward, InputKind, capture
from mpcompile.program.marks import SLOT
from mpcompile.program.workload import Workload
from mpcompile.step.differentiate import differentiate
from mpcompile.step.slots import Role, Slot
from mpcompile.step.trained import trained_parameters
from mpcompile.step.transformed import Transformed
from mpcompile.torch_private.graphs import copy_graph

Gradient = tuple[fx.GraphModule, dict[str, Slot]]
Maker = Callable[[Forward, list[str]], Gradient]


def gradients(workload: Workload, makers: Mapping[str, Maker]) -> dict[str, Gradient]:
    """Return a workload's gradient graph by each way; the workload is not changed.

    A maker takes the captured forward graph, which it may change, and the names of the trained
    parameters.
    """
    assert workload.optimizer is not None
    forward = capture(workload)
    named = {id(i.tensor): i.name for i in forward.inputs if i.kind is InputKind.PARAMETER}
    groups = trained_parameters(workload.optimizer, named, workload.origin)
    trained = [name for group in groups for name in group]
    return {
        way: make(replace(forward, module=copy_graph(forward.module)), trained)
        for way, make in makers.items()
    }


def own_values(made: Transformed, scale: float = 1.0) -> list[torch.Tensor]:
    """Return the gradient graph's inputs: the program's own weights and batch, and the given scale.

    Joined weights are adjacent in memory, as in a step.
    """
    assert made.step is not None
    values = {item.name: item.tensor.detach() for item in made.forward.inputs}
    found = []
    for node in made.step.gradient.graph.find_nodes(op="placeholder"):
        name, like = SLOT[node], node.meta["val"]
        if made.step.slots[name].role is Role.SCALE:
            whole = torch.tensor(scale)
        else:
            parts = [values[part] for part in made.step.members(name)]
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        found.append(whole.to(like.dtype))
    return found


def by_autocast(forward: Forward, trained: list[str]) -> Gradient:
    """Make the graph by autocast with CUDA's lists, which casts only weights once."""
    with autocast.cuda_policies() as switch:
        return differentiate(autocast.under_autocast(forward, switch), trained, "")


def by_plan(forward: Forward, trained: list[str]) -> Gradient:
    """Make the graph by our plan and passes; it is not bound to state, so it casts weights."""
    plan = decide(describe(forward, Policy()), Precision.FP16)
    run_passes(forward.module, forward_passes(plan), lint)
    gradient, slots = differentiate(forward, trained, "")
    run_passes(gradient, GRADIENT, lint)
    return gradient, slots


def lint(module: fx.GraphModule) -> None:
    """Check a graph."""
    module.graph.lint()
