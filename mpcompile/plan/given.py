"""Decide by a given plan, such as a file that a person has edited.

Only the decisions of the given plan count: each pins its op, and the planner computes casts,
storage and cost again. So every reader gets the precision it needs, whatever the file contains.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from mpcompile.errors import BadInput
from mpcompile.plan.authors import Author, author_of
from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.fingerprint import differences, graph_of
from mpcompile.plan.growth import contain_growth
from mpcompile.plan.measured import apply_ranges
from mpcompile.plan.op_table import TABLE
from mpcompile.plan.plan import Decision, Plan
from mpcompile.plan.planner import make_plan
from mpcompile.plan.ranges import Ranges
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision

_INSIDE = {rule.name: rule.inside for rule in TABLE}


def decide(
    flow: Dataflow, precision: Precision, given: Plan | None = None, ranges: Ranges | None = None
) -> Plan:
    """Return the plan for a graph, with the shape of that graph.

    Args:
        flow: the neutral graph, with the policy's wishes.
        precision: the policy's 16-bit format.
        given: a plan whose decisions and precision override the policy; the policy decides ops
            that it does not mention.
        ranges: measured ranges; see `apply_ranges`.

    Raises:
        BadInput: the given plan is of another graph, or contradicts itself.
    """
    wanted = given.precision if given else Precision.FP32
    narrow = precision if wanted is Precision.FP32 else wanted
    if ranges is not None:
        flow = apply_ranges(flow, ranges, narrow)
    flow = contain_growth(flow, narrow)
    plan = make_plan(flow, narrow)
    if given is not None:
        plan = make_plan(_pinned(flow, given, plan), given.precision)
    return replace(plan, graph=graph_of(flow))


def for_other_shapes(plan: Plan, flow: Dataflow) -> Plan:
    """Return a program's plan adapted to a batch of other shapes.

    Decisions about ops that are missing there are left out. So are those of the rules for 16 bits
    about an op that needs FP32 there: with more positions, fewer of them fit.
    """
    graph = graph_of(flow)
    same = {op for op, what in graph.ops.items() if plan.graph.ops.get(op) == what and what.writes}
    exact = {op.id for op in flow.ops if op.exact and op.wish is Wish.FULL and not op.overridden}
    decisions = tuple(
        decision
        for decision in plan.decisions
        if decision.op in same
        and (
            decision.op not in exact
            or decision.stores is Precision.FP32
            or author_of(decision.reason) is not None
        )
    )
    return replace(plan, graph=graph, decisions=decisions)


def _pinned(flow: Dataflow, given: Plan, own: Plan) -> Dataflow:
    """Return the graph with each op's wish as the plan decides."""
    different = differences(given.graph, graph_of(flow), "the plan", "this program")
    if different:
        raise BadInput(
            f"the plan belongs to another graph: {'; '.join(different)}",
            "the plan",
            "make a plan from this program",
        )
    decisions = {decision.op: decision for decision in given.decisions}
    counts = Counter(decision.op for decision in given.decisions)
    twice = sorted(op for op, count in counts.items() if count > 1)
    strange = decisions.keys() - {op.id for op in flow.ops if op.writes}
    if twice:
        raise BadInput(f"the plan decides twice about {twice[0]!r}", "the plan", "remove one")
    if strange:
        raise BadInput(
            f"the plan decides about {min(strange)!r}, which makes no FP32 tensor",
            "the plan",
            "remove that decision",
        )
    mine = {decision.op: decision for decision in own.decisions}
    ops = tuple(
        _pin(op, decisions[op.id], mine[op.id], given.precision) if op.id in decisions else op
        for op in flow.ops
    )
    return Dataflow(ops, flow.tensors)


def _pin(op: Op, decision: Decision, own: Decision, precision: Precision) -> Op:
    """Return the op with the wish of the decision.

    The stored precision decides, and the precision of the arithmetic follows. Only an op that can
    compute in FP32 and store 16 bits (*inside*) can also be told to compute in 16 bits.
    """
    if decision.stores not in (precision, Precision.FP32):
        raise BadInput(
            f"{op.id} stores {decision.stores.value}, but the plan's precision is "
            f"{precision.value}",
            "the plan",
            f"choose {precision.value} or float32",
        )
    narrow = decision.stores is not Precision.FP32
    if narrow and not op.reads and op.rule in _INSIDE:  # a weight of an ONNX file has no row
        raise BadInput(
            f"{op.id} stores {decision.stores.value}, but it is made in FP32, not computed from "
            "anything",
            "the plan",
            "let it store float32",
        )
    inside = _INSIDE.get(op.rule, op.inside)
    return replace(
        op,
        wish=Wish.HALF if narrow else Wish.FULL,
        inside=inside and not (narrow and decision.computes is precision),
        reason=_reason(decision, own),
    )


def _reason(decision: Decision, own: Decision) -> str:
    """Return the decision's reason, or a new one if a person changed only the precision."""
    if decision.stores is own.stores or decision.reason != own.reason:
        return decision.reason
    return f"{Author.PLAN}; the policy alone stores {own.stores.short}: {own.reason}"
