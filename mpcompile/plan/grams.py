"""Keep the product of a layer's result with itself in FP32: it sums squares.

The largest numbers of ``f @ f.T`` are on its diagonal, the sums of the squares of rows. As the
square in a norm, such a sum can leave FP16's range although ``f`` does not. If ``f`` was divided by
its norm, or comes from a norm layer or a softmax, the sums are small. Scores of attention, which a
softmax reads, are not meant here.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.growth import BOUNDED
from mpcompile.plan.origins import is_tensor_core
from mpcompile.plan.policy import Level, Policy
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision

REASON = "a tensor times itself: it sums squares, and these can leave the range of FP16"

_KEEPS_ALL = frozenset(
    "view _unsafe_view reshape view_as reshape_as flatten unflatten permute transpose swapaxes "
    "swapdims movedim moveaxis t mT numpy_T adjoint squeeze unsqueeze contiguous clone alias "
    "detach Reshape Transpose Flatten Squeeze Unsqueeze Identity".split()
)
"""Ops whose result holds all numbers of their input: parts of one tensor are different tensors."""
_DIVIDES = frozenset("div divide true_divide Div".split())


def keep_grams(flow: Dataflow, policy: Policy) -> Dataflow:
    """Return the graph with FP32 for products of a tensor with itself.

    BF16 has the range of FP32, so nothing changes; nor at the level ``tensor-cores-only``.

    Args:
        flow: the neutral graph.
        policy: its level and precision decide what may change.
    """
    if policy.precision is not Precision.FP16 or policy.level is Level.TENSOR_CORES_ONLY:
        return flow
    writers = {name: op for op in flow.ops for name in op.writes}
    scores = _scores(flow)
    return replace(
        flow,
        ops=tuple(op if scores.intersection(op.writes) else _kept(op, writers) for op in flow.ops),
    )


def _scores(flow: Dataflow) -> set[str]:
    """Return the tensors that a softmax reads, or arithmetic in front of it."""
    found: set[str] = set()
    for op in reversed(flow.ops):
        before = op.wish is Wish.FREE and found.intersection(op.writes)
        if op.rule == "softmax" or before:
            found.update(op.reads)
    return found


def _kept(op: Op, writers: dict[str, Op]) -> Op:
    if not is_tensor_core(op) or op.rule != "matmul" or op.overridden or op.wish is not Wish.HALF:
        return op
    bases = [_base(name, writers) for name in op.reads]
    alike = [name for name in bases if bases.count(name) > 1]
    once = len(op.reads) == 1  # mm(x, x): the planner lists a tensor once
    base = alike[0] if alike else bases[0] if once else None
    if base is None or _is_small(writers.get(base)):
        return op
    return replace(op, wish=Wish.FULL, reason=REASON)


def _base(name: str, writers: dict[str, Op]) -> str:
    """Return the tensor that a tensor is a view of, or holds the numbers of."""
    while (op := writers.get(name)) is not None and op.kind in _KEEPS_ALL and len(op.reads) == 1:
        name = op.reads[0]
    return name


def _is_small(op: Op | None) -> bool:
    return op is not None and (op.kind in BOUNDED or op.kind in _DIVIDES)
