"""Keep in FP32 what a sensitive op reads: an angle, a difference, the argument of a choice.

A number may fit the range of a 16-bit format and still lose the digits that count: the sine of the
position 3,001 needs more than 11 bits. Each row of the op table says what rounded inputs do to the
op's result (`Sensitivity`). From each sensitive op a demand for FP32 goes backward through the
graph. A tensor without a Tensor-Core op among its ancestors is exact: it came with the batch, or
it was computed from positions, buffers and weights alone; so all that led to it stays in FP32. The
result of a layer is rounded already. The table `_REACH` says how far a demand goes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from mpcompile.errors import warn
from mpcompile.plan.bounds.bound import NOTHING
from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.harmless import is_harmless
from mpcompile.plan.op_table import rows_of
from mpcompile.plan.origins import Origin, Origins, is_tensor_core
from mpcompile.plan.policy import Level, Policy
from mpcompile.plan.rule import PrecisionClass, Sensitivity, Wish

_TRANSPARENT = rows_of(PrecisionClass.TRANSPARENT)
_ROUNDS_NOTHING = frozenset(
    "relu neg negative abs maximum minimum where masked_fill Relu Neg Abs Max Min Where".split()
)
_RENEWS = frozenset(("norm layer", "softmax"))
"""Rows whose results have a size of their own: rounding before them matters no more."""


class NarrowedArgument(UserWarning):
    """A sensitive op reads the result of a layer that the policy runs in 16 bits."""


class Reach(IntEnum):
    """How far back a sensitive op demands FP32."""

    NOTHING = 0
    EXACT = 1
    """To tensors that no layer has rounded."""
    CHAIN = 2
    """Also to the arithmetic behind a layer's Tensor-Core op."""
    PRODUCER = 3
    """Also to that Tensor-Core op."""


_REACH: Mapping[Sensitivity, Reach] = {
    Sensitivity.HARMLESS: Reach.NOTHING,
    Sensitivity.STEEP: Reach.CHAIN,
    Sensitivity.PERIODIC: Reach.PRODUCER,
    Sensitivity.ADDING: Reach.EXACT,
    Sensitivity.CANCELLING: Reach.EXACT,
    Sensitivity.COMPARISON: Reach.EXACT,
    Sensitivity.DISCONTINUOUS: Reach.CHAIN,
    Sensitivity.UNKNOWN: Reach.EXACT,
    Sensitivity.ILL_CONDITIONED: Reach.PRODUCER,
}


@dataclass(frozen=True, slots=True)
class _Demand:
    reach: Reach
    reader: Op

    @property
    def reason(self) -> str:
        return f"{self.reader.id} reads it, and {self.reader.sensitivity.value}"


def keep_exact(flow: Dataflow, policy: Policy) -> Dataflow:
    """Return the graph with FP32 for the ops whose results a sensitive op reads.

    A demand ends at an op whose precision the user has set. At the level ``tensor-cores-only`` a
    layer's Tensor-Core op runs in 16 bits in any case; `NarrowedArgument` warns of it.

    Args:
        flow: the neutral graph.
        policy: its level decides what may change.
    """
    if policy.changes_nothing:
        return flow
    demands = _Demands(flow, policy.level)
    kept = demands.kept()
    for name, demand in demands.narrowed.items():
        warn(
            f"{name} runs in {policy.precision.short}, {demand.reader.id} reads its result, and "
            f"{demand.reader.sensitivity.value}; the level paper would keep {name} in FP32, or "
            f'give full=("node:{name}",).',
            NarrowedArgument,
        )
    ops = []
    for op in flow.ops:
        if op.id in kept and op.wish is not Wish.FULL:
            op = replace(op, wish=Wish.FULL, reason=kept[op.id])
        elif op.wish is Wish.FREE and not op.overridden and (bound := demands.bound_of(op)):
            op = replace(op, reason=f"{op.reason}; {bound}")
        exact = op.exact or op.id in kept or demands.are_on(op)
        ops.append(replace(op, exact=exact))
    return replace(flow, ops=tuple(ops))


def sensitive_readers(flow: Dataflow) -> dict[str, tuple[str, Sensitivity]]:
    """Return the id and kind of the op that reads each op's result and needs it in FP32.

    Overrides do not count: an op that the user runs in 16 bits all the same is in it.

    Args:
        flow: the neutral graph.
    """
    bare = [replace(op, overridden=False, wish=_own_wish(op)) for op in flow.ops]
    demands = _Demands(replace(flow, ops=tuple(bare)), Level.PAPER)
    kept = demands.kept()
    found: dict[str, tuple[str, Sensitivity]] = {}
    for op in flow.ops:
        if op.id in kept:
            asked = demands.strongest(op)
            reader = asked.reader if asked is not None else op
            found[op.id] = reader.id, reader.sensitivity
    return found


def _own_wish(op: Op) -> Wish:
    if op.overridden:
        return Wish.HALF if is_tensor_core(op) else Wish.FREE
    return op.wish


def _wide(flow: Dataflow, origins: Origins) -> set[str]:
    """Return the tensors behind a layer that are FP32 in any case, or made of such alone.

    Under autocast they are FP32 until the next layer reads them.
    """
    wide: set[str] = set()
    for op in flow.ops:
        free = op.wish is Wish.FREE and not is_tensor_core(op)
        rounded = (name for name in op.reads if Origin.LAYER in origins.of(name))
        if op.wish is Wish.FULL or (free and wide.issuperset(rounded)):
            wide.update(op.writes)
    return wide


class _Demands:
    """The demands on the tensors of one graph.

    Attributes:
        narrowed: the demand on each layer's op that runs in 16 bits all the same.

    Args:
        flow: the neutral graph.
        level: the policy's.
    """

    def __init__(self, flow: Dataflow, level: Level) -> None:
        self._ops, self._origins = flow.ops, Origins(flow)
        self._bounds = {tensor.id: tensor.bound for tensor in flow.tensors}
        self._wide = _wide(flow, self._origins)
        self._let_go: dict[str, str] = {}
        self._narrows_layers = level is Level.TENSOR_CORES_ONLY
        self._on: dict[str, _Demand] = {}
        self.narrowed: dict[str, _Demand] = {}

    def are_on(self, op: Op) -> bool:
        """Whether a sensitive op reads a result of an op."""
        return self.strongest(op) is not None

    def strongest(self, op: Op) -> _Demand | None:
        """Return the demand on an op's results that reaches farthest back."""
        found = [self._on[name] for name in op.writes if name in self._on]
        return max(found, key=lambda item: item.reach, default=None)

    def bound_of(self, op: Op) -> str:
        """Return why no sensitive op needs an op's results in FP32 if a bound is why, or ""."""
        return next((self._let_go[name] for name in op.writes if name in self._let_go), "")

    def kept(self) -> dict[str, str]:
        """Return why each op that must store FP32 must, by id."""
        kept: dict[str, str] = {}
        known = -1
        while self._asked() > known:  # a loop passes its results to its next round
            known = self._asked()
            for op in reversed(self._ops):
                reason = self._visit(op)
                if reason:
                    kept.setdefault(op.id, reason)
        return self._without_moved_layers(kept)

    def _asked(self) -> int:
        """Return how much is demanded; it only grows."""
        return sum(demand.reach for demand in self._on.values())

    def _visit(self, op: Op) -> str:
        """Note the demands of an op on what it reads; return why it must store FP32, or ""."""
        if op.overridden and op.wish is not Wish.FULL:
            return ""
        demand = self.strongest(op)
        passed = self._passed(op, demand) if demand is not None else None
        if passed is not None:
            self._note(op.reads, passed)
        own = _Demand(_REACH[op.sensitivity], op)
        asks = self._note(tuple(self._fragile(op)), own)
        if passed is not None and demand is not None:
            return demand.reason
        # Such an op computes in FP32 in any case, and its result may be rounded.
        return op.sensitivity.value if asks and not op.inside else ""

    def _passed(self, op: Op, demand: _Demand) -> _Demand | None:
        """Return the demand of an op for its inputs, or None if a demand on its result ends."""
        rounded = Origin.LAYER in self._origins.of(*op.writes)
        if is_tensor_core(op):
            if rounded and demand.reach is not Reach.PRODUCER:
                return None
            if rounded and self._narrows_layers:
                self.narrowed.setdefault(op.id, demand)
                return None
            return replace(demand, reach=min(demand.reach, Reach.CHAIN))
        if rounded and op.rule in _RENEWS:
            return replace(demand, reach=Reach.EXACT)
        return demand

    def _sensitive(self, op: Op) -> Iterator[str]:
        """Yield the tensors that a sensitive op must not read rounded."""
        if op.rule == "cast" and op.writes:
            return  # to FP32, and not to integers
        adds_distance = Origin.SUM | Origin.GRAM in self._origins.of(*op.reads)
        if op.sensitivity is Sensitivity.ADDING and not adds_distance:
            return
        for name in op.full_reads if op.rule == "grid sampler" else op.reads:
            origin = self._origins.of(name)
            data = origin & (Origin.DATA | Origin.GRAM)
            if op.sensitivity is Sensitivity.CANCELLING and not data:
                continue  # weights, such as the rows of an embedding in front of a norm
            if op.sensitivity is Sensitivity.UNKNOWN and Origin.GRAM in origin:
                continue  # nothing says that it is worth a matmul in FP32
            yield name

    def _fragile(self, op: Op) -> Iterator[str]:
        """Yield those of an op's sensitive arguments whose bound does not prove them harmless."""
        for name in self._sensitive(op):
            if is_harmless(op, name, self._bounds):
                self._let_go.setdefault(name, f"{op.id} reads it, but it {self._bounds[name]}")
            else:
                yield name

    def _note(self, names: tuple[str, ...], demand: _Demand) -> bool:
        """Note a demand on tensors; return whether it is one on any of them."""
        noted = False
        for name in names:
            reach = demand.reach
            narrow = Origin.LAYER in self._origins.of(name) and name not in self._wide
            if narrow and reach is Reach.EXACT:
                reach = Reach.NOTHING
            if reach is Reach.NOTHING or self._bounds.get(name, NOTHING).exact:
                continue
            noted = True
            before = self._on.get(name)
            if before is None or before.reach < reach:
                self._on[name] = demand
        return noted

    def _without_moved_layers(self, kept: dict[str, str]) -> dict[str, str]:
        """Leave out ops on rounded results that round nothing: their readers widen as well."""
        wide = {name for op in self._ops if op.wish is Wish.FULL for name in op.writes}
        found: dict[str, str] = {}
        for op in self._ops:
            if op.id not in kept:
                continue
            layer = Origin.LAYER in self._origins.of(*op.reads)
            moves = op.view or op.rule in _TRANSPARENT or op.kind in _ROUNDS_NOTHING
            sensitive = op.sensitivity is not Sensitivity.HARMLESS  # it chooses, as topk
            if moves and layer and not sensitive and not wide.intersection(op.reads):
                continue
            found[op.id] = kept[op.id]
            wide.update(op.writes)
        return found
