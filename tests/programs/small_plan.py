"""A neutral graph small enough to read, its plan, and the plan edited by hand."""

from __future__ import annotations

import json

from mpcompile import Plan, Precision
from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor
from mpcompile.plan.given import decide
from mpcompile.plan.rule import Wish

FLOW = Dataflow(
    (
        Op("linear", "linear", "matmul", Wish.HALF, False, False, "fast", ("w", "x"), ("linear",)),
        Op("gelu", "gelu", "activation", Wish.FREE, False, True, "either", ("linear",), ("gelu",)),
        Op("softmax", "softmax", "softmax", Wish.FREE, True, True, "sum", ("gelu",), ("softmax",)),
        Op("made", "zeros", "constant", Wish.FULL, False, True, "made", (), ("made",)),
        Op(
            "last", "linear", "matmul", Wish.HALF, False, False, "fast", ("softmax", "w"), ("last",)
        ),
        Op("best", "argmax", "comparison", Wish.FREE, False, True, "an index", ("last",), ()),
    ),
    (
        Tensor("w", 64, fixed=Fixed.PARAMETER),
        Tensor("x", 32, fixed=Fixed.BATCH),
        Tensor("linear", 32),
        Tensor("gelu", 32),
        Tensor("softmax", 32),
        Tensor("made", 32),
        Tensor("last", 32, output=True),
    ),
)


PLAN = decide(FLOW, Precision.FP16)


def edited(plan: Plan, **stores: str) -> Plan:
    """Edit a plan's file like a person: only the precision that ops store."""
    document = json.loads(plan.to_json())
    for row in document["decisions"]:
        row["stores"] = stores.get(row["op"], row["stores"])
    return Plan.from_json(json.dumps(document))
