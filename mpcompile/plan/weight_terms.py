"""Compute terms that depend only on weights from the FP32 masters.

Otherwise a regulariser such as ``weight.abs().sum()`` and its gradient would read the 16-bit
working copy, in which small weights underflow. A spectral norm, which multiplies its weight by two
vectors that it keeps as buffers, would divide the weight by a rounded number.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.dataflow import Dataflow, Fixed, Op
from mpcompile.plan.rule import Wish

_ARITHMETIC = frozenset(("pointwise", "activation", "mean"))
_BY_VECTOR = frozenset(("mv", "addmv", "vdot", "dot"))
"""Products with a vector: no Tensor Core gains anything by them."""
REASON = "computed from weights alone, so from their FP32 masters"


def keep_weight_terms(flow: Dataflow) -> Dataflow:
    """Return the graph with FP32 for free arithmetic that reads only parameters, or buffers beside.

    Views and other movement pass a weight on. A matmul ends the term, but for a product with a
    vector, and so does an op whose precision the user has set.
    """
    weights = {tensor.id for tensor in flow.tensors if tensor.fixed is Fixed.PARAMETER}
    held = {tensor.id for tensor in flow.tensors if tensor.fixed is Fixed.BUFFER}
    return replace(flow, ops=tuple(_kept(op, weights, held) for op in flow.ops))


def _kept(op: Op, weights: set[str], held: set[str]) -> Op:
    """Return an op with its new wish; note its results if they depend only on weights."""
    if not held.union(weights).issuperset(op.reads) or op.overridden or not op.reads:
        return op
    by_vector = op.kind in _BY_VECTOR
    if op.wish is Wish.HALF and not by_vector:
        return op
    if weights.isdisjoint(op.reads):
        held.update(op.writes)
        return op
    if by_vector or (op.rule in _ARITHMETIC and op.wish is Wish.FREE):
        op = replace(op, wish=Wish.FULL, reason=REASON)
    weights.update(op.writes)
    return op
