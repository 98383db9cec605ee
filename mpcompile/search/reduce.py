"""Find the smallest part of a step that still shows a failure, and the smallest inputs for it.

The part is a set of ops whose result is the failing node. Its inputs, the results of other ops,
have the values of the step, both for 16 bits and for FP64. So a part that fails is the cause
itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx

from mpcompile.errors import CannotCapture
from mpcompile.numerics.lockstep import Moment
from mpcompile.numerics.node_errors import NodeError, first_failure
from mpcompile.numerics.nonfinite import Cause
from mpcompile.search.delta_debugging import smallest_sufficient
from mpcompile.search.reduced_inputs import Source, smaller
from mpcompile.search.subgraph import (
    Captured,
    Outcome,
    capture_values,
    inputs_of,
    maker,
    makers,
    obstacle,
    outcome,
)

_SETS = 400
"""The number of sets of ops that are tried in the order of their size; then a bisection begins."""

T = TypeVar("T")


@dataclass(frozen=True)
class Reduced:
    """The smallest part found.

    Attributes:
        captured: the node and all nodes that it depends on.
        ops: the part's ops, in order.
        inputs: the part's inputs, by node, in order.
        outcome: the part's result on these inputs.
        limit: the part fails if its error is above this.
        before: the number of ops that the node depends on.
        tried: the number of parts that were run.
    """

    captured: Captured
    ops: tuple[fx.Node, ...]
    inputs: dict[str, Source]
    outcome: Outcome
    limit: float
    before: int
    tried: int


def failing_node(rows: list[NodeError], cause: Cause | None, tolerance: float) -> NodeError | None:
    """Return the first node of a step that fails, or None.

    If numbers are rounded to zero, and a later node, such as a division or a logarithm, makes
    numbers from them that are not finite, the later node is returned: a zero alone may do no harm.

    Args:
        rows: all nodes of the step in order.
        cause: the cause of the first number that is not finite.
        tolerance: the error that a node may have.
    """
    first = first_failure(rows, tolerance)
    if first is None or cause is None or not cause.since:
        return first
    order = {row.id: index for index, row in enumerate(rows)}
    return rows[order[cause.node]] if order[cause.since] <= order[first.id] else first


def reduce(moment: Moment, name: str, tolerance: float) -> Reduced:
    """Return the smallest part of a step that fails in the same way as one of its nodes.

    The smallest part has the fewest ops, then the fewest inputs, then the fewest numbers in them.
    If there are too many sets of ops to try them all, the part is only 1-minimal: no single op can
    be left out.

    Args:
        moment: the step's inputs.
        name: a node of the gradient graph that fails against FP64.
        tolerance: the error that the node may have.

    Raises:
        CannotCapture: a script cannot contain the cause of the failure.
    """
    search = _Search(capture_values(moment, name), tolerance)
    ops = sorted(search.smallest())
    inputs = {item: Source(value) for item, value in search.inputs(ops).items()}
    inputs = smaller(inputs, ops, search.still_fails)
    made = outcome(search.captured, {item: source.value for item, source in inputs.items()})
    assert made is not None
    return Reduced(
        search.captured,
        tuple(ops),
        inputs,
        made,
        made.limit(tolerance),
        len(search.reachable),
        search.tried,
    )


class _Search:
    """A search that runs parts of a graph and remembers which of them fail."""

    def __init__(self, captured: Captured, tolerance: float) -> None:
        self.captured, self._tolerance = captured, tolerance
        self._known: dict[frozenset[fx.Node], bool] = {}
        end = maker(captured.target)
        if end is None:
            raise CannotCapture(
                f"{captured.target.name} is an input of the step, so there is nothing to reduce"
            )
        self._end = end
        self.reachable = self._reachable()
        # The failure with all ops; parts must fail in the same way.
        self._not_finite = False
        whole = self._run(self.reachable)
        if whole is None or not whole.fails(tolerance):
            self._refuse()
        else:
            self._not_finite = whole.nonfinite > 0

    @property
    def tried(self) -> int:
        return len(self._known)

    def inputs(self, ops: Collection[fx.Node]) -> dict[str, Any]:
        """Return the inputs of some ops as clones: dense and without offset."""
        given = {}
        for node in inputs_of(self.captured.target, ops):
            value = self.captured.values[node.name]
            is_tensor = isinstance(value, torch.Tensor)
            given[node.name] = value.detach().clone() if is_tensor else value
        return given

    def still_fails(self, inputs: dict[str, Any]) -> bool:
        """Whether the part of the graph that reads these inputs fails in the same way."""
        made = outcome(self.captured, inputs)
        if made is None:
            return False
        return made.nonfinite > 0 if self._not_finite else made.fails(self._tolerance)

    def smallest(self) -> frozenset[fx.Node]:
        """Return the smallest set of ops that fails."""
        sets = [frozenset([self._end])]
        while sets and self.tried + len(sets) <= _SETS:
            failing = [ops for ops in sets if self._fails(ops)]
            if failing:
                return min(failing, key=self._cost)
            sets = list(dict.fromkeys(more for ops in sets for more in self._larger(ops)))
        nearest_first = sorted(self._near() - {self._end}, reverse=True)
        kept = smallest_sufficient(nearest_first, lambda some: self._fails(some | {self._end}))
        return frozenset([*kept, self._end])

    def _near(self) -> frozenset[fx.Node]:
        """Return all ops within a distance; the set doubles until it fails."""
        ops, tried = frozenset([self._end]), 1
        while ops != self.reachable:
            ops = ops.union(*self._larger(ops))
            if len(ops) >= 2 * tried:
                tried = len(ops)
                if self._fails(ops):
                    break
        return ops

    def _larger(self, ops: frozenset[fx.Node]) -> Iterable[frozenset[fx.Node]]:
        found = dict.fromkeys(item for node in sorted(ops) for item in makers(node))
        return [ops | {item} for item in found if item in self.reachable and item not in ops]

    def _fails(self, ops: frozenset[fx.Node]) -> bool:
        if ops not in self._known:
            self._known[ops] = self.still_fails(self.inputs(ops))
        return self._known[ops]

    def _run(self, ops: frozenset[fx.Node]) -> Outcome | None:
        return outcome(self.captured, self.inputs(ops))

    def _cost(self, ops: frozenset[fx.Node]) -> tuple[int, int]:
        values = self.inputs(ops).values()
        return len(values), sum(v.numel() if isinstance(v, torch.Tensor) else 1 for v in values)

    def _reachable(self) -> frozenset[fx.Node]:
        """Return all ops that the node depends on, up to ops that a script cannot contain."""
        reason = obstacle(self._end)
        if reason:
            raise CannotCapture(
                f"{self.captured.target.name} fails, but {self._end.name} {reason}, so no script "
                "can show it"
            )
        found, waiting = {self._end}, [self._end]
        while waiting:
            for item in makers(waiting.pop()):
                if item not in found and not obstacle(item):
                    found.add(item)
                    waiting.append(item)
        return frozenset(found)

    def _refuse(self) -> None:
        stops = [
            f"{item.name} {obstacle(item)}"
            for node in sorted(self.reachable)
            for item in makers(node)
            if obstacle(item)
        ]
        why = f": {stops[-1]}" if stops else ""
        raise CannotCapture(
            f"{self.captured.target.name} fails, but a script cannot contain the inputs with "
            f"which it fails{why}"
        )
