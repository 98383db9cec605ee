"""A plan as rows for a person: the facts about a forward pass without its program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mpcompile.plan.plan import Cast, Decision, Plan
from mpcompile.precision import Precision
from mpcompile.show.view import View, ViewNode, precision_of

_NAMES: dict[Precision, Literal["fp16", "bf16", "fp32"]] = {
    Precision.FP16: "fp16",
    Precision.BF16: "bf16",
    Precision.FP32: "fp32",
}


def view_of_plan(plan: Plan, source: str) -> View:
    """Return a view of a plan's decisions, op by op.

    Args:
        plan: an untrusted plan. Its tensors have sizes, but no shapes.
        source: its name, as the user gave it.
    """
    return View(source, "plan", _NAMES[plan.precision], tuple(_Rows(plan).all()))


class _Rows:
    """Makes the rows of one plan; holds the maker and the readers of each tensor."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._decided = {decision.op: decision for decision in plan.decisions}
        self._made = {tensor: id for id, op in plan.graph.ops.items() for tensor in op.writes}
        self._read_as = {
            (cast.tensor, reader): cast.id for cast in plan.casts for reader in cast.readers
        }
        self._ids = {cast.id for cast in plan.casts}
        self._casts: dict[str, list[Cast]] = {}
        for cast in plan.casts:
            self._casts.setdefault(self._maker(cast.tensor), []).append(cast)

    def all(self) -> Iterator[ViewNode]:
        """Yield a row for each input, op and cast, readers last."""
        known: set[str] = set()
        for row in self._rows():
            # An edited plan may name ops or tensors that it does not contain.
            if row.id not in known:
                known.add(row.id)
                yield row

    def _rows(self) -> Iterator[ViewNode]:
        graph = self._plan.graph
        for tensor in graph.elements:
            if tensor not in self._made:
                yield self._input(tensor)
                yield from map(self._cast, self._casts.get(tensor, ()))
        for id in graph.ops:
            yield self._op(id, self._decided.get(id))
            yield from map(self._cast, self._casts.get(id, ()))

    def _maker(self, tensor: str) -> str:
        return self._made.get(tensor, tensor)

    def _reads(self, id: str) -> tuple[str, ...]:
        graph = self._plan.graph
        found = (
            self._read_as.get((tensor, id), self._maker(tensor))
            for tensor in graph.ops[id].reads
            if tensor in graph.elements
        )
        return tuple(dict.fromkeys(found))

    def _input(self, tensor: str) -> ViewNode:
        count = self._plan.graph.elements[tensor]
        return ViewNode(
            id=tensor,
            op="input",
            role="input",
            stage="forward",
            precision="f32",
            stores=("f32",),
            type=f"f32 x {count:,}",
            bytes=4 * count,
        )

    def _op(self, id: str, decision: Decision | None) -> ViewNode:
        op = self._plan.graph.ops[id]
        count = sum(self._plan.graph.elements.get(tensor, 0) for tensor in op.writes)
        if decision is None:
            return ViewNode(id, op.kind, "op", "forward", "other", reads=self._reads(id))
        computes, stores = decision.computes.short, decision.stores.short
        return ViewNode(
            id=id,
            op=op.kind,
            # A weight or an input of an ONNX graph has its own row, so that it can have a decision.
            role="input" if decision.rule == "weight" else "op",
            stage="forward",
            precision=precision_of(computes, set(), {stores}),
            computes=computes,
            stores=(stores,),
            type=f"{stores} x {count:,}",
            bytes=count * (4 if decision.stores is Precision.FP32 else 2),
            reads=self._reads(id),
            planned=id,
            rule=decision.rule,
            reason=decision.reason,
            where=decision.where,
        )

    def _cast(self, cast: Cast) -> ViewNode:
        to = cast.to.short
        return ViewNode(
            id=cast.id,
            op="cast",
            role="cast",
            stage="forward",
            precision="both",
            computes="f32",
            stores=(to,),
            type=f"{to} x {cast.elements:,}",
            bytes=cast.elements * (4 if cast.to is Precision.FP32 else 2),
            reads=(cast.source if cast.source in self._ids else self._maker(cast.source),),
            planned=cast.id,
            rule="cast",
            reason=cast.reason,
        )
