"""Random neutral graphs drawn by Hypothesis, and the tensors that a plan makes 16 bits."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.plan import Plan
from mpcompile.precision import Precision
from programs.random_flow import random_flow

FREE_OPS = 10

choosers = st.integers(0, 2**64 - 1).map(random.Random)
"""Seeds: to let Hypothesis draw each number of a graph took longer than to plan the graph."""


def dataflows(free: int = FREE_OPS) -> st.SearchStrategy[Dataflow]:
    return choosers.map(lambda chooser: random_flow(chooser, free))


def half_of(plan: Plan) -> frozenset[str]:
    return frozenset(d.op for d in plan.decisions if d.stores is not Precision.FP32)
