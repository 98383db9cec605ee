"""Random neutral graphs drawn by Hypothesis, and the tensors that a plan makes 16 bits."""

from __future__ import annotations

from hypothesis import strategies as st

from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.plan import Plan
from mpcompile.precision import Precision
from programs.random_flow import random_flow

FREE_OPS = 10


def dataflows(free: int = FREE_OPS) -> st.SearchStrategy[Dataflow]:
    return st.randoms(use_true_random=False).map(lambda chooser: random_flow(chooser, free))


def half_of(plan: Plan) -> frozenset[str]:
    return frozenset(d.op for d in plan.decisions if d.stores is not Precision.FP32)
