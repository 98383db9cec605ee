"""Keep in FP32 what fits 16 bits by range and not by digits: all rules for it, in their order."""

from __future__ import annotations

from mpcompile.plan.compared import keep_compared
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.grams import keep_grams
from mpcompile.plan.policy import Policy
from mpcompile.plan.sensitivity import keep_exact


def keep_digits(flow: Dataflow, policy: Policy) -> Dataflow:
    """Return the graph with the wishes of each rule.

    The first two know which ops are FP32 in any case; the demands of the last go on from these.

    Args:
        flow: the neutral graph, of PyTorch or ONNX.
        policy: decides what may change.
    """
    return keep_exact(keep_compared(keep_grams(flow, policy), policy), policy)
