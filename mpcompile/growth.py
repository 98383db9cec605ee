"""Keep in FP32 what follows an op whose result can leave FP16's range, until something bounds it.

``x.pow(2).mean(-1) + eps`` is a square in FP32, and a mean and a sum that could take either
precision: in FP16 they would overflow where the square did not. Under autocast type promotion has
the same effect.
"""

from __future__ import annotations

from dataclasses import replace

from mpcompile.dataflow import Dataflow, Op
from mpcompile.precision import Precision
from mpcompile.rules import BOUNDED, GROWING, LINEAR, Wish


def contain_growth(flow: Dataflow, precision: Precision) -> Dataflow:
    """Return the graph with FP32 for free ops that read what has grown.

    Growth starts at an op of a row in `GROWING` and ends at an op in `BOUNDED`, at a Tensor-Core
    op, and where the user has said what an op shall be. BF16 has FP32's range: nothing changes.

    Args:
        flow: the neutral graph, ops in an order in which every tensor is written before it is read.
        precision: the 16-bit format.
    """
    if precision is not Precision.FP16:
        return flow
    grown: dict[str, Op] = {}
    ops: list[Op] = []
    for op in flow.ops:
        source = next((grown[name] for name in op.reads if name in grown), None)
        if op.rule in GROWING and op.kind not in BOUNDED | LINEAR:
            source = op
        elif op.wish is Wish.HALF or op.overridden or op.kind in BOUNDED:
            source = None
        elif source is not None and op.wish is Wish.FREE:
            op = replace(
                op,
                wish=Wish.FULL,
                reason=f"it follows {source.id}, whose result can leave the range of FP16",
            )
        if source is not None:
            grown |= dict.fromkeys(op.writes, source)
        ops.append(op)
    return Dataflow(tuple(ops), flow.tensors)
