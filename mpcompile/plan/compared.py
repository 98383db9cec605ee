"""Keep in FP32 what comes with the batch and meets a result: targets, masks and their differences.

``(prediction - target) ** 2`` must not round a target of 2,000 to the next even number, and a
target of 200,000 is infinite in FP16. So behind the last Tensor-Core op of the graph, arithmetic
that reads a result and a number of the batch is FP32, and so is all that follows it.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.origins import Origin, Origins, is_tensor_core
from mpcompile.plan.policy import Policy
from mpcompile.plan.rule import Wish

REASON = "it compares a result with a number of the batch, which 16 bits would round"


def keep_compared(flow: Dataflow, policy: Policy) -> Dataflow:
    """Return the graph with FP32 for arithmetic on results and the batch behind the last layer.

    Args:
        flow: the neutral graph.
        policy: a policy that changes nothing changes nothing here.
    """
    if policy.changes_nothing:
        return flow
    layers, kept = _before_layers(flow), _Kept(flow)
    ops = tuple(op if layers.intersection(op.writes) else kept.visit(op) for op in flow.ops)
    return replace(flow, ops=tuple(kept.with_sources(ops)))


def _before_layers(flow: Dataflow) -> set[str]:
    """Return the tensors from which a Tensor-Core op is computed."""
    found: set[str] = set()
    known = -1
    while len(found) > known:  # a loop passes its results to its next round
        known = len(found)
        for op in reversed(flow.ops):
            if is_tensor_core(op) or found.intersection(op.writes):
                found.update(op.reads)
    return found


class _Kept:
    """What is kept in FP32 so far, in the order of the graph."""

    def __init__(self, flow: Dataflow) -> None:
        self._origins = Origins(flow)
        self._many = {tensor.id for tensor in flow.tensors if tensor.elements > 1}
        self._wide: set[str] = set()
        self._sources: set[str] = set()

    def visit(self, op: Op) -> Op:
        """Return an op behind the last Tensor-Core op with its new wish."""
        of = {name: self._origins.of(name) for name in op.reads}
        given = [name for name in op.reads if of[name] is Origin.DATA and name in self._many]
        meets = bool(given) and any(Origin.LAYER in origin for origin in of.values())
        if not meets and not self._wide.intersection(op.reads):
            return op
        if op.wish is Wish.FREE and not op.overridden and not op.view:
            op = replace(op, wish=Wish.FULL, reason=REASON, exact=True)
        if op.wish is Wish.FULL:
            self._sources.update(given)
            self._wide.update(op.writes)
        elif op.view:
            self._wide.update(op.writes)
        return op

    def with_sources(self, ops: tuple[Op, ...]) -> list[Op]:
        """Return the ops with FP32 for those that lead from the batch to a comparison."""
        found: list[Op] = []
        for op in reversed(ops):
            if self._sources.intersection(op.writes):
                self._sources.update(op.reads)
                if op.wish is Wish.FREE and not op.overridden:
                    op = replace(op, wish=Wish.FULL, reason=REASON, exact=True)
            found.append(op)
        return found[::-1]
