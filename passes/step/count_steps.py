"""Count the steps taken and skipped, as state of the graph."""

from __future__ import annotations

import torch

from mpcompile.program.marks import FINITE
from mpcompile.step.graph import StepGraph, add_input, call, results, set_results
from mpcompile.step.slots import Role, Slot

TAKEN, SKIPPED = "steps_taken", "steps_skipped"
_ATEN = torch.ops.aten


def count_steps(step: StepGraph) -> int:
    """Add the two 0-d int64 counters; return how many were added.

    Example:
        >>> before_and_after(count_steps, step_before("count_steps"))
        update
        + steps_taken  i64[]  input steps_taken
        + steps_skipped  i64[]  input steps_skipped
        + add_tensor  i64[]  add steps_taken lt_scalar
        + logical_not_default  b8[]  logical_not lt_scalar
        + add_tensor_1  i64[]  add steps_skipped logical_not_default
        + return  steps_taken = add_tensor
        + return  steps_skipped = add_tensor_1
    """
    if TAKEN in step.slots:
        return 0
    graph = step.update.graph
    finite = next((node for node in graph.nodes if node in FINITE), None)
    values = results(graph)
    like = next(iter(values.values()))
    for name in (TAKEN, SKIPPED):
        slot = step.slots[name] = Slot(name, Role.COUNTER, (), torch.int64)
        counter = add_input(graph, slot, like)
        with graph.inserting_before(graph.output_node()):
            if finite is None:
                one: object = 1 if name == TAKEN else 0
            elif name == TAKEN:
                one = finite
            else:
                one = call(graph, _ATEN.logical_not.default, finite)
            values[name] = call(graph, _ATEN.add.Tensor, counter, one)
    set_results(graph, values)
    return 2
