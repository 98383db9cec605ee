"""Overrides that could mend a rewritten model, each tried before it is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import onnx_ir as ir

from mpcompile.errors import CompileError
from mpcompile.onnx.comparison import Comparison
from mpcompile.onnx.rewrite import Rewritten
from mpcompile.plan.policy import Policy
from mpcompile.precision import Precision

_TRIALS = 6
_MOST_OPS = 12
_LEVELS = 4
"""How far before a wrong node ops are suspected, in steps from a node to what it reads."""


def mending_override(
    rewritten: Rewritten,
    found: Comparison,
    policy: Policy,
    again: Callable[[Policy], Comparison],
) -> tuple[str, ...]:
    """Return patterns to keep in FP32 with which the comparison passes; empty if none was found.

    First the first wrong node is tried. If it is wrong again, those that make what it reads are
    tried too, because the error of a sine is made where its angle is rounded. If another node is
    the first, that one is added.

    Args:
        rewritten: the model that differs from its original.
        found: the comparison.
        policy: the policy of the rewritten model.
        again: rewrites the original by another policy and compares it.
    """
    narrow = {
        decision.op
        for decision in rewritten.plan.decisions
        if {decision.computes, decision.stores} != {Precision.FP32}
    }
    before = _Before(rewritten, narrow)
    full: dict[str, None] = {}
    first = found.first
    for _ in range(_TRIALS):
        fresh = [] if first is None else before.suspects(first.tensor, full)
        full |= dict.fromkeys(fresh)
        if not fresh or len(full) > _MOST_OPS:
            return ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tried = again(replace(policy, full=(*policy.full, *full)))
            except CompileError:  # the override contradicts another, or the model does not run
                return ()
        if tried.passed:
            return tuple(full)
        first = tried.first
    return ()


class _Before:
    """The narrow nodes that a tensor is made by, level by level."""

    def __init__(self, rewritten: Rewritten, narrow: set[str]) -> None:
        self._narrow = narrow
        self._makers = {v.name: node for node in rewritten.model.graph for v in node.outputs}

    def suspects(self, tensor: str, known: Collection[str]) -> list[str]:
        """Return patterns of the nearest nodes before a tensor that are not known."""
        level = [self._makers[tensor]] if tensor in self._makers else []
        for _ in range(_LEVELS):
            names = [f"node:{node.name}" for node in level if node.name in self._narrow]
            if fresh := [name for name in names if name not in known]:
                return fresh
            level = list(dict.fromkeys(maker for node in level for maker in _makers(node)))
        return []


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes that make what a node reads, through casts."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        while maker is not None and maker.op_type == "Cast":
            source = maker.inputs[0]
            maker = None if source is None else source.producer()
        if maker is not None:
            yield maker
