"""Report on the device whether a step was applied, and the norm of its gradients if known."""

from __future__ import annotations

import torch

from mpcompile.passes.step.count_steps import TAKEN
from mpcompile.program.marks import FINITE, NORM
from mpcompile.step.graph import StepGraph, call, results, set_results
from mpcompile.step.slots import Role, Slot

APPLIED, GRADIENT_NORM = "step_applied", "gradient_norm"


def report_outcome(step: StepGraph) -> int:
    """Add 0-d reports to the update graph's results; return how many were added.

    ``step_applied`` is bool, ``gradient_norm`` FP32: unscaled and before clipping.

    Example:
        >>> before_and_after(report_outcome, step_before("report_outcome"))
        update
        + return  step_applied = lt_scalar
    """
    if APPLIED in step.slots:
        return 0
    graph = step.update.graph
    values = results(graph)
    applied = next((node for node in graph.nodes if node in FINITE), None)
    if applied is None:
        with graph.inserting_before(graph.output_node()):
            like = values[TAKEN]
            applied = call(graph, torch.ops.aten.ones_like.default, like, dtype=torch.bool)
    found = {APPLIED: applied}
    norm = next((node for node in graph.nodes if NORM.get(node) == "total"), None)
    if norm is not None:
        found[GRADIENT_NORM] = norm
    for name, node in found.items():
        step.slots[name] = Slot(name, Role.REPORT, (), node.meta["val"].dtype)
    set_results(graph, {**values, **found})
    return len(found)
