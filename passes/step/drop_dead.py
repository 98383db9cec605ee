"""Remove nodes, inputs and slots that nothing needs."""

from __future__ import annotations

from mpcompile.program.marks import SLOT, SLOTS
from mpcompile.step.graph import StepGraph
from mpcompile.step.slots import Role


def drop_dead(step: StepGraph) -> int:
    """Clean a step graph; return the number of nodes and slots removed.

    Batch slots stay even if unread, so that a step takes the same arguments as the loss. If only a
    copy of a weight is read, the weight is no input, but its slot stays: it is still in memory.

    Example:
        >>> before_and_after(drop_dead, step_before("drop_dead"))
        gradient
        - w  f32[3,4]  input w
        - _to_copy_4  f32[3,4]  _to_copy t_3 dtype=f32
    """
    removed = 0
    for graph in step.graphs().values():
        before = len(graph.nodes)
        graph.eliminate_dead_code()
        for node in list(graph.find_nodes(op="placeholder")):
            if not node.users and step.slots[SLOT[node]].role is not Role.BATCH:
                graph.erase_node(node)
        removed += before - len(graph.nodes)
    used = {
        name
        for graph in step.graphs().values()
        for name in (
            *(SLOT[node] for node in graph.find_nodes(op="placeholder")),
            *SLOTS[graph.output_node()],
        )
    }
    used |= {
        member
        for name in used
        if step.slots[name].role is Role.SHARED
        for member in step.members(name)
    }
    for name in set(step.slots) - used:
        del step.slots[name]
        removed += 1
    return removed
