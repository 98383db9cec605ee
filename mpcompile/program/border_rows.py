"""Describe to the planner the values that cross the borders of inner graphs."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from torch import fx

from mpcompile.plan.dataflow import Op, Tensor, Where
from mpcompile.plan.needs import settled
from mpcompile.plan.nest import BorderKind
from mpcompile.plan.policy import Resolution
from mpcompile.plan.rule import PrecisionClass, Rule, Wish
from mpcompile.program.control_flow import Border, items_of
from mpcompile.program.needs import BORDER_NEEDS
from mpcompile.program.node_tensors import count_of, is_full_tensor
from mpcompile.torch_private.ops import op_name

_WHY = {
    BorderKind.CARRY: "a loop carries it: one precision at entry, in every round and at exit",
    BorderKind.OPERAND: "it enters a graph; an op that needs another precision casts it there",
    BorderKind.SLICE: "a loop iterates over its rows",
    BorderKind.RESULT: "all branches return it in one precision",
    BorderKind.STACK: "a loop collects its rows",
}

_STRICTEST = (Wish.FULL, Wish.HALF, Wish.FREE)


def border_rule(name: str) -> Rule:
    """Return the row of the op table for values that cross the borders of an op's inner graphs."""
    why = "it crosses the border of a graph"
    return Rule("control flow", name, "", PrecisionClass.TRANSPARENT, "", False, why)


def border_row(
    border: Border, ids: dict[fx.Node, str], rounds: Fraction, resolution: Resolution, where: Where
) -> tuple[Op, tuple[Tensor, ...]] | None:
    """Describe a border to the planner, if its tensors are FP32.

    The border becomes an op that takes either precision, which all its names then have: it reads
    the value that comes in and writes the value that goes on. It shares the memory of its input;
    only the tensor that a loop collects is written again.

    Args:
        border: one value.
        ids: the ids of all nodes.
        rounds: how often its caller runs.
        resolution: the policy may pin it, by the caller's op name or by one of the border's ids;
            of several callers the one with the strictest need decides.
        where: the caller's source position.

    Returns:
        The row, and a tensor for each result of the caller that no node reads.
    """
    name = op_name(border.caller)
    values = [call.meta["val"][index] for call, index in border.results]
    values += [node.meta.get("val") for node in border.inputs]
    if not values or not all(is_full_tensor(value) for value in values):
        return None
    unread = tuple(
        Tensor(f"{ids[call]}/{index}", ceil(count_of(call.meta["val"][index]) * rounds))
        for call, index in border.results
        if not items_of(call, index)
    )
    said = [resolution.wishes[id] for id in border.ids]
    rule, wish, reason = min(said, key=lambda each: _STRICTEST.index(each[1]))
    overridden = any(id in resolution.overridden for id in border.ids)
    told = rule, wish, reason if overridden else _WHY[border.kind]
    rule, wish, reason = settled(values, told, BORDER_NEEDS)
    reads = [use.value for use in border.reads]
    row = Op(
        id=border.id,
        kind=f"{name} {border.kind.value}",
        rule=rule.name,
        wish=wish,
        inside=False,
        streams=False,
        reason=reason,
        reads=tuple(dict.fromkeys(ids[node] for node in reads if isinstance(node, fx.Node))),
        writes=(*(ids[node] for node in border.writes), *(tensor.id for tensor in unread)),
        view=border.kind.shares_memory,
        overridden=overridden,
        where=where,
    )
    return row, unread
