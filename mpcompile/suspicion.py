"""Which ops of a plan are to be suspected, by what their nodes do to a step's numbers."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from mpcompile.judges import Batches, settled_step
from mpcompile.node_errors import NodeError, node_errors
from mpcompile.pipeline import Transformed
from mpcompile.torch_private import is_higher_order
from mpcompile.trial_log import Suspect

_ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8}
"""By storage format the largest error that one rounding can be."""


def suspects(
    made: Transformed, ops: AbstractSet[str], batches: Batches, steps: int
) -> list[Suspect]:
    """Measure ops, forward and backward, and return them with the most suspicious first.

    What speaks against a node is the error that it adds itself, as far as it is more than a
    rounding, and the share of its numbers that are zero but not in FP64, each summed over the
    batches; against an op what speaks against the worst of its nodes. Equally suspicious ops stay
    in the order of the graph.

    Args:
        made: transformed without the passes that join and reshape matmuls, so that every node of
            the step belongs to one op of the plan; its model is used up.
        ops: ids of ops.
        batches: to train on and to measure.
        steps: on how many of them to train.
    """
    step, _ = settled_step(made, batches, steps)
    measured = [node_errors(step, *batch) for batch in batches[steps:]]
    blamed = _blamed(made, ops)
    rows: dict[str, list[tuple[NodeError, ...]]] = {op.id: [] for op in made.flow.ops}
    for nodes in zip(*measured, strict=True):
        for op in blamed.get(nodes[0].id, ()):
            rows[op].append(nodes)
    found = [_suspect(op, rows[op]) for op in rows if op in ops]
    return sorted(found, key=lambda item: -item.suspicion)


def _suspect(op: str, nodes: list[tuple[NodeError, ...]]) -> Suspect:
    """Return what speaks against an op, given its nodes, each with a row per batch."""
    rows = [row for batches in nodes for row in batches]
    return Suspect(
        op=op,
        suspicion=max((sum(map(_suspicion, batches)) for batches in nodes), default=0.0),
        error=max((row.error for row in rows), default=0.0),
        own=max((row.own for row in rows), default=0.0),
        vanished=max((row.vanished for row in rows), default=0.0),
    )


def _suspicion(row: NodeError) -> float:
    rounding = _ROUNDING.get(row.type.partition("[")[0], 0.0)
    return max(row.own - rounding, 0.0) + row.vanished


def _blamed(made: Transformed, ops: AbstractSet[str]) -> dict[str, AbstractSet[str]]:
    """Return, per node of a step, those of some ops whose precision decides about it.

    A cast is made for the ops that read it, and the op that writes what it rounds has part in it.
    """
    assert made.step is not None
    by_name: dict[str, set[str]] = {op.id: {op.id} for op in made.flow.ops}
    for op in made.flow.ops:
        for tensor in op.writes:
            by_name.setdefault(tensor, {op.id})
    inputs = {item.node: f"{item.name}.working" for item in made.forward.inputs}
    for cast in made.plan.casts:
        by_name[cast.id] = {*cast.readers, *by_name.get(cast.tensor, ())}
        if cast.tensor in inputs:
            by_name.setdefault(inputs[cast.tensor], set()).update(cast.readers)
    # A loop is one node of the step; the ids of its ops hold a dot, those of its borders a slash.
    inner = {op.id for op in made.flow.ops if "." in op.id or "/" in op.id}
    found: dict[str, AbstractSet[str]] = {}
    for node in made.step.gradient.graph.nodes:
        key = str(node.meta.get("slot") or node.meta.get("planned", ""))
        found[node.name] = (inner if is_higher_order(node) else by_name.get(key, set())) & ops
    return found
