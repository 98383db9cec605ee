"""Compute terms that depend only on weights from the FP32 masters.

Otherwise a regulariser such as ``weight.abs().sum()`` and its gradient would read the 16-bit
working copy, in which small weights underflow.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.dataflow import Dataflow, Fixed, Op
from mpcompile.plan.rule import Wish

_ARITHMETIC = frozenset(("pointwise", "activation", "mean"))
REASON = "computed from weights alone, so from their FP32 masters"


def keep_weight_terms(flow: Dataflow) -> Dataflow:
    """Return the graph with FP32 for free arithmetic that reads only parameters.

    Views and other movement pass a weight on. A matmul ends the term, and so does an op whose
    precision the user has set.
    """
    weights = {tensor.id for tensor in flow.tensors if tensor.fixed is Fixed.PARAMETER}
    return replace(flow, ops=tuple(_kept(op, weights) for op in flow.ops))


def _kept(op: Op, weights: set[str]) -> Op:
    """Return an op with its new wish; note its results if they depend only on weights."""
    if not op.reads or not weights.issuperset(op.reads) or op.wish is Wish.HALF or op.overridden:
        return op
    if op.rule in _ARITHMETIC and op.wish is Wish.FREE:
        op = replace(op, wish=Wish.FULL, reason=REASON)
    weights.update(op.writes)
    return op
