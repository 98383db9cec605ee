"""Move the casts of weights that a step only reads out of the step too.

The step that trains such a weight keeps a working copy, and this step reads it as well. A frozen
weight has one 16-bit copy for all steps. Neither is cast in a step
(`mpcompile.train.weight_copies`).
"""

from __future__ import annotations

from mpcompile.program.casts import is_cast
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.graph import StepGraph, add_input, placeholders
from mpcompile.step.slots import Role, Slot


def hoist_read_casts(step: StepGraph) -> int:
    """Turn 16-bit casts of read-only weights into inputs; return how many weights got one.

    Example:
        >>> step = step_before("hoist_read_casts", before=nn.Linear(4, 4, bias=False))
        >>> before_and_after(hoist_read_casts, step)
        gradient
        - _to_copy  f16[4,4]  _to_copy before_weight dtype=f16
        + before_weight_working  f16[4,4]  input before.weight.working
        - t  f16[4,4]  t _to_copy
        + t  f16[4,4]  t before_weight_working
    """
    graph = step.gradient.graph
    hoisted = 0
    for name, weight in placeholders(graph).items():
        casts = [
            user for user in weight.users if is_cast(user) and user.meta["val"].dtype in NARROW
        ]
        if step.slots[name].role is not Role.CONSTANT or not casts:
            continue
        first = casts[0].meta["val"]
        slot = Slot(f"{name}.working", Role.SHARED, step.slots[name].shape, first.dtype)
        step.slots[slot.name] = slot
        copy = add_input(graph, slot, weight)
        copy.meta["val"] = first  # with the strides of the weight
        for cast in casts:
            if cast.meta["val"].dtype is first.dtype:
                cast.replace_all_uses_with(copy)
                graph.erase_node(cast)
        hoisted += 1
    return hoisted
