"""Keep in FP32 arithmetic on a layer's result and a number that no layer has rounded.

``(prediction - target) ** 2`` must not round a target of 2,000 to the next even number, and a
target of 200,000 is infinite in FP16. The size of what comes with the batch, or of what is computed
from it, is unknown. So where such a number meets the result of a layer, the arithmetic is FP32, as
type promotion under autocast makes it, unless its bound says that 16 bits hold it exactly, such as
a mask. What follows is FP32 too, until a norm or another op with a bounded result, or a Tensor-Core
op.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.growth import BOUNDED
from mpcompile.plan.origins import Origin, Origins, is_tensor_core
from mpcompile.plan.policy import Policy
from mpcompile.plan.rule import Wish

REASON = "it reads a number of the batch beside a layer's result, and 16 bits would round that"


def keep_compared(flow: Dataflow, policy: Policy) -> Dataflow:
    """Return the graph with FP32 for arithmetic on results of layers and numbers of the batch.

    Args:
        flow: the neutral graph.
        policy: a policy that changes nothing changes nothing here.
    """
    if policy.changes_nothing:
        return flow
    kept = _Kept(flow)
    ops = tuple(map(kept.visit, flow.ops))
    return replace(flow, ops=tuple(kept.with_sources(ops)))


class _Kept:
    """What is kept in FP32 so far, in the order of the graph."""

    def __init__(self, flow: Dataflow) -> None:
        self._origins = Origins(flow)
        self._coarse = {
            tensor.id for tensor in flow.tensors if tensor.elements > 1 and not tensor.bound.exact
        }
        self._wide: set[str] = set()
        self._sources: set[str] = set()

    def visit(self, op: Op) -> Op:
        """Return an op with its new wish."""
        if is_tensor_core(op):
            return op
        of = {name: self._origins.of(name) for name in op.reads}
        given = [name for name in op.reads if of[name] == Origin.DATA and name in self._coarse]
        meets = bool(given) and any(Origin.LAYER in origin for origin in of.values())
        if not meets and not self._wide.intersection(op.reads):
            return op
        bounded = op.kind in BOUNDED
        computes = not op.view and not (bounded and op.inside)  # a norm reads FP32 as it is
        if op.wish is Wish.FREE and not op.overridden and computes:
            op = replace(op, wish=Wish.FULL, reason=REASON, exact=not bounded)
        if op.wish is Wish.FULL:
            self._sources.update(given)
        if not bounded and (op.wish is Wish.FULL or op.view):
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
