"""Decide precisions: the assignment that writes the fewest bytes, found as a minimum cut.

The problem. Let ``h(o)`` be 1 if op ``o`` stores its results in 16 bits, else 0; `Wish.HALF` and
`Wish.FULL` pin it. A tensor ``t`` of ``n`` numbers, written by op ``p``, is read by ops ``R`` in
their own precision and by *inside* ops in whichever precision it is stored in. Minimise the sum
over tensors of

1. its own storage, ``2n h(p) + 4n (1 - h(p))``; nothing for a view (`_own_bytes`);
2. a 16-bit copy, ``2n + e``, if ``h(p) = 0`` and some reader has ``h = 1`` (`_copy_edges`);
3. an FP32 copy, ``4n + e``, if ``h(p) = 1`` and some reader has ``h = 0``.

Tensors saved for backward count twice. A fixed tensor exists in FP32 (``h(p) = 0``) at no cost.
``e`` is a tie-break smaller than any byte: among equal plans the one with fewer casts wins. Terms 2
and 3 charge one shared copy however many readers it has, which is what makes the sum submodular
and the minimum cut exact: side S holds the ops with ``h = 1``; the copy of ``t`` in 16 bits is a
node that lies in S as soon as one reader does.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov

from mpcompile.dataflow import Dataflow, Op, Tensor
from mpcompile.plan import Cast, Decision, Plan
from mpcompile.precision import Precision
from mpcompile.rules import Wish

_HALF_SIDE, _FULL_SIDE = ("", "half"), ("", "full")


def make_plan(flow: Dataflow, precision: Precision) -> Plan:
    """Return the cheapest plan for a graph.

    Args:
        flow: the neutral graph, ops in an order in which every tensor is written before it is read.
        precision: the 16-bit format; FP32, or a graph in which no op wants 16 bits, gives the plan
            that changes nothing.
    """
    if precision is Precision.FP32 or not any(op.wish is Wish.HALF for op in flow.ops):
        return plan_of(flow, frozenset(), Precision.FP32)
    return plan_of(flow, cheapest(flow), precision)


def plan_of(flow: Dataflow, half: frozenset[str], precision: Precision) -> Plan:
    """Return the plan that an assignment is: its decisions, casts and cost.

    Args:
        flow: the neutral graph.
        half: ids of the ops that store 16 bits.
        precision: the 16-bit format; FP32 for the plan that changes nothing.
    """
    readers, writers = _readers(flow), _writers(flow)
    copies = [
        _copies(tensor, writers.get(tensor.id), half, readers[tensor.id], precision)
        for tensor in flow.tensors
    ]
    return Plan(
        precision=precision,
        decisions=tuple(_decision(op, half, precision) for op in flow.ops if op.writes),
        storage={
            tensor.id: storage for tensor, (storage, _) in zip(flow.tensors, copies, strict=True)
        },
        casts=tuple(cast for _, casts in copies for cast in casts),
        cost=plan_cost(flow, half),
    )


def cheapest(flow: Dataflow) -> frozenset[str]:
    """Return the ids of the ops that store 16 bits in a cheapest plan.

    Of several cheapest plans it is the one with the most such ops, whatever the order of the rows:
    the ops that cannot reach the FULL side in the residual graph of any maximum flow.
    """
    network = nx.DiGraph()
    network.add_nodes_from((_HALF_SIDE, _FULL_SIDE))
    scale = len(flow.tensors) + 1  # one byte outweighs all tie-breaks together
    for op in flow.ops:
        if op.wish is Wish.HALF:
            network.add_edge(_HALF_SIDE, ("op", op.id))
        elif op.wish is Wish.FULL:
            network.add_edge(("op", op.id), _FULL_SIDE)
    readers = _readers(flow)
    writers = _writers(flow)
    for tensor in flow.tensors:
        writer = ("op", writers[tensor.id].id) if tensor.id in writers else _FULL_SIDE
        if writer != _FULL_SIDE:
            narrow, wide = (scale * bytes for bytes in _own_bytes(tensor))
            _add(network, writer, _FULL_SIDE, narrow)
            _add(network, _HALF_SIDE, writer, wide)
        _copy_edges(network, tensor, writer, readers[tensor.id], scale)
    _, (half, _) = nx.minimum_cut(
        network, _HALF_SIDE, _FULL_SIDE, capacity="capacity", flow_func=boykov_kolmogorov
    )
    return frozenset(name for kind, name in half if kind == "op")


def _add(network: nx.DiGraph, tail: object, head: object, capacity: int) -> None:
    """Add capacity to an edge; an edge without a capacity is infinite and stays so."""
    if network.has_edge(tail, head):
        if "capacity" in network[tail][head]:
            network[tail][head]["capacity"] += capacity
    else:
        network.add_edge(tail, head, capacity=capacity)


def _copy_edges(
    network: nx.DiGraph, tensor: Tensor, writer: object, readers: list[Op], scale: int
) -> None:
    narrow, wide = (scale * bytes + 1 for bytes in _copy_bytes(tensor))
    free = [("op", op.id) for op in readers if not op.inside and op.wish is not Wish.FULL]
    if free:
        copy = ("narrow copy", tensor.id)
        for reader in free:
            network.add_edge(reader, copy)
        _add(network, copy, writer, narrow)
    full = [("op", op.id) for op in readers if not op.inside and op.wish is not Wish.HALF]
    if (full or tensor.output) and writer != _FULL_SIDE:
        copy = ("wide copy", tensor.id)
        for reader in full:
            network.add_edge(copy, reader)
        if tensor.output:
            network.add_edge(copy, _FULL_SIDE)
        _add(network, writer, copy, wide)


def _own_bytes(tensor: Tensor) -> tuple[int, int]:
    times = (1 + tensor.saved) * tensor.elements * (not tensor.view)
    return 2 * times, 4 * times


def _copy_bytes(tensor: Tensor) -> tuple[int, int]:
    times = (1 + tensor.saved) * tensor.elements
    return 2 * times, 4 * times


def _readers(flow: Dataflow) -> dict[str, list[Op]]:
    readers: dict[str, list[Op]] = {tensor.id: [] for tensor in flow.tensors}
    for op in flow.ops:
        for tensor in dict.fromkeys(op.reads):
            readers[tensor].append(op)
    return readers


def _writers(flow: Dataflow) -> dict[str, Op]:
    return {tensor: op for op in flow.ops for tensor in op.writes}


def plan_cost(flow: Dataflow, half: frozenset[str]) -> int:
    """Return the bytes of an assignment, term by term as the module's text states them.

    Independent of the cut, so that tests can compare the two.
    """
    total = 0
    readers, writers = _readers(flow), _writers(flow)
    for tensor in flow.tensors:
        writer = writers.get(tensor.id)
        stored_half = writer is not None and writer.id in half
        wants = [op.id in half for op in readers[tensor.id] if not op.inside]
        if writer is not None:
            total += _own_bytes(tensor)[0 if stored_half else 1]
        if not stored_half and any(wants):
            total += _copy_bytes(tensor)[0]
        if stored_half and (tensor.output or not all(wants)):
            total += _copy_bytes(tensor)[1]
    return total


def _decision(op: Op, half: frozenset[str], precision: Precision) -> Decision:
    narrow = op.id in half and precision is not Precision.FP32
    if op.wish is not Wish.FREE or precision is Precision.FP32:
        reason = op.reason
    elif narrow:
        reason = f"{op.reason}; stored in {precision.short}: fewer bytes with these neighbours"
    else:
        reason = f"{op.reason}; stored in f32: with these neighbours casts would cost more"
    return Decision(
        op=op.id,
        kind=op.kind,
        rule=op.rule,
        computes=precision if narrow and not op.inside else Precision.FP32,
        stores=precision if narrow else Precision.FP32,
        reason=reason,
        where=op.where,
    )


@dataclass(frozen=True, slots=True)
class _Reads:
    """Who reads a tensor in which precision."""

    narrow: tuple[str, ...]
    wide: tuple[str, ...]
    inside: tuple[str, ...]


def _copies(
    tensor: Tensor,
    writer: Op | None,
    half: frozenset[str],
    ops: list[Op],
    precision: Precision,
) -> tuple[tuple[Precision, ...], list[Cast]]:
    """Return the precisions a tensor is stored in and the casts that make them so."""
    if precision is Precision.FP32:
        return (Precision.FP32,), []
    stored_half = writer is not None and writer.id in half
    arrives_wide = not stored_half or (writer is not None and writer.inside)
    reads = _Reads(
        narrow=tuple(op.id for op in ops if not op.inside and op.id in half),
        wide=tuple(op.id for op in ops if not op.inside and op.id not in half)
        + (("output",) if tensor.output else ()),
        inside=tuple(op.id for op in ops if op.inside),
    )

    def cast(source: str, to: Precision, who: tuple[str, ...], reason: str) -> Cast:
        suffix = f"{to.short}" if source == tensor.id else f"{precision.short}.{to.short}"
        return Cast(f"{tensor.id}.{suffix}", tensor.id, source, to, who, tensor.elements, reason)

    casts: list[Cast] = []
    if not arrives_wide:
        if reads.wide or reads.inside:
            casts.append(
                cast(
                    tensor.id,
                    Precision.FP32,
                    reads.wide + reads.inside,
                    "read by arithmetic in FP32",
                )
            )
    elif not stored_half:
        if reads.narrow:
            casts.append(cast(tensor.id, precision, reads.narrow, _why_narrow(tensor)))
    else:
        # Computed in FP32, stored in 16 bits: whoever can, reads what is stored.
        down = cast(tensor.id, precision, reads.narrow, "stored in 16 bits, computed in FP32")
        if reads.wide or not reads.inside:
            casts.extend([down] if reads.narrow else [])
        else:
            casts.append(down)
            casts.append(cast(down.id, Precision.FP32, reads.inside, "read by arithmetic in FP32"))
    storage = {precision} if stored_half else {Precision.FP32}
    storage |= {c.to for c in casts if c.to is precision or set(c.readers) & set(reads.wide)}
    if stored_half and reads.wide:
        storage.add(Precision.FP32)
    return tuple(p for p in (precision, Precision.FP32) if p in storage), casts


def _why_narrow(tensor: Tensor) -> str:
    if tensor.fixed:
        return f"{tensor.fixed}, read in 16 bits"
    return "stored in FP32, read in 16 bits"
