"""Decide precisions: the assignment that writes the fewest bytes, found as a minimum cut.

Unknowns. Each op ``o`` has one unknown ``h(o)``: 1 if it stores its results in 16 bits, 0 if in
FP32.

Constraints. ``h(o) = 1`` if the op's wish is HALF, ``h(o) = 0`` if it is FULL; an op whose wish is
FREE has a choice (`_node`). There is no other constraint: all names of a value that crosses the
border of an inner graph are one op, so they agree by themselves.

Objective. A tensor ``t`` has ``n`` numbers and a writer with ``s = h(writer)``; a fixed tensor has
``s = 0``. Whether ``t`` is written, present, wide or rounded, and which ops load, read and keep it,
is known before (`mpcompile.plan.footprint.footprints`). ``[x]`` is 1 if ``x`` is true, else 0;
``some(ops, v)`` means that some ``o`` of them has ``h(o) = v``:

    minimise    unit * sum of B(t)  +  sum of C(t)          over all tensors t

    B(t) =  [written] * (2n if s = 1 else 4n)                                       (1)
          + 2n * [some(loads, 1)           and not (present and s = 1)]             (2)
          + 4n * [(some(loads, 0) or wide) and not (present and s = 0)]             (3)
          + 2n * [some(kept, 1)]                                                    (4)
          + 4n * [some(kept, 0)]                                                    (5)
    C(t) =  [some(reads, 1)                      and s = 0]                         (6)
          + [(some(reads, 0) or wide or rounded) and s = 1]                         (7)

``B`` counts bytes: (1) to (3) those that are written in forward, (4) and (5) once more those that
are kept for backward. ``C`` counts casts. ``unit = 2 * tensors + 1`` (`network_of`) is larger than
the sum of all ``C``, so one byte outweighs all casts together. Of several minima the one with the
most 16-bit ops is taken (`mpcompile.plan.min_cut.source_side`).

Network. The source's side of the cut means ``h = 1``. `_add_tensor` adds the terms of one tensor,
in this order:

    (1)            two edges beside each other, written there
    (2), (4), (6)  `_narrow_copy`: pay if some op of a set is on the source's side and the writer
                   is not; in (4), and in (2) if the tensor is not present, the sink is the writer
    (3), (5), (7)  `_wide_copy`: the mirror image; in (5), and in (3) if the tensor is not present,
                   the source is the writer; ``wide`` and ``rounded`` are readers that are the sink

`mpcompile.plan.footprint.cost` evaluates the same seven terms for a given assignment, without a
network. ``docs/planner.md`` explains each word and proves the construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from mpcompile.plan.dataflow import Dataflow, Op, Tensor
from mpcompile.plan.footprint import Footprint, cost, footprints, is_neutral, reads_wide
from mpcompile.plan.min_cut import source_side
from mpcompile.plan.plan import Cast, Decision, Plan
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision

HALF_SIDE, FULL_SIDE = "half side", "full side"
"""Source and sink of `network_of`."""


def make_plan(flow: Dataflow, precision: Precision) -> Plan:
    """Return the cheapest plan for a graph.

    Args:
        flow: the neutral graph, its ops in an order for people.
        precision: the 16-bit format; FP32, or a graph in which no op on FP32 tensors wants 16 bits,
            gives the plan that changes nothing.
    """
    rows = footprints(flow)
    wanted = any(op.wish is Wish.HALF and (op.reads or op.writes) for op in flow.ops)
    if precision is Precision.FP32 or not wanted:
        return plan_of(flow, rows, frozenset(), Precision.FP32)
    return plan_of(flow, rows, cheapest(flow, rows), precision)


def plan_of(
    flow: Dataflow, rows: tuple[Footprint, ...], half: frozenset[str], precision: Precision
) -> Plan:
    """Return the plan of an assignment: its decisions, casts and cost.

    Args:
        flow: the neutral graph.
        rows: its `footprints`.
        half: ids of the ops that store 16 bits.
        precision: the 16-bit format; FP32 for the plan that changes nothing.
    """
    copies = [_copies(row, half, precision) for row in rows]
    return Plan(
        precision=precision,
        decisions=tuple(_decision(op, half, precision) for op in flow.ops if op.writes),
        storage={row.tensor.id: storage for row, (storage, _) in zip(rows, copies, strict=True)},
        casts=tuple(cast for _, casts in copies for cast in casts),
        cost=cost(rows, half).bytes,
    )


def cheapest(flow: Dataflow, rows: tuple[Footprint, ...]) -> frozenset[str]:
    """Return the ids of the ops that store 16 bits in the cheapest plan.

    Of several cheapest plans, the one with the most such ops is taken, for every order of the rows.

    Args:
        flow: the neutral graph.
        rows: its `footprints`.
    """
    side = source_side(network_of(flow, rows), HALF_SIDE, FULL_SIDE)
    return frozenset(
        op.id
        for op in flow.ops
        if op.wish is Wish.HALF or (op.wish is Wish.FREE and ("op", op.id) in side)
    )


def network_of(flow: Dataflow, rows: tuple[Footprint, ...]) -> nx.DiGraph:
    """Return the network whose minimum cut is the cheapest plan.

    An op with a choice is a node ``("op", id)``, on the source's side if it stores 16 bits; an op
    without one is the source or the sink itself. A copy of a tensor that exists as soon as one of
    several ops wants it has its own node. An edge without ``capacity`` is infinite.

    Args:
        flow: the neutral graph.
        rows: its `footprints`.
    """
    network = nx.DiGraph()
    network.add_nodes_from((HALF_SIDE, FULL_SIDE))
    network.add_nodes_from(("op", op.id) for op in flow.ops if op.wish is Wish.FREE)
    unit = 2 * len(rows) + 1  # one byte outweighs the casts of all tensors together
    for row in rows:
        _add_tensor(network, row, unit)
    return network


def _node(op: Op) -> object:
    if op.wish is Wish.FREE:
        return ("op", op.id)
    return HALF_SIDE if op.wish is Wish.HALF else FULL_SIDE


def _add_tensor(network: nx.DiGraph, row: Footprint, unit: int) -> None:
    """Add the terms (1) to (7) of one tensor, in the order of the objective."""
    name = row.tensor.id
    narrow, wide = unit * row.narrow_bytes, unit * row.wide_bytes
    writer = FULL_SIDE if row.writer is None else _node(row.writer)
    loads, reads, kept = ([_node(op) for op in ops] for ops in (row.loads, row.reads, row.kept))
    if row.written:
        _add(network, writer, FULL_SIDE, narrow)
        _add(network, HALF_SIDE, writer, wide)
    as_wide = [FULL_SIDE] if row.wide else []
    _narrow_copy(network, ("narrow", name), loads, writer if row.present else FULL_SIDE, narrow)
    _wide_copy(network, ("wide", name), loads + as_wide, writer if row.present else HALF_SIDE, wide)
    _narrow_copy(network, ("kept narrow", name), kept, FULL_SIDE, narrow)
    _wide_copy(network, ("kept wide", name), kept, HALF_SIDE, wide)
    _narrow_copy(network, ("narrow cast", name), reads, writer, 1)
    rounded = [FULL_SIDE] if row.rounded else []
    _wide_copy(network, ("wide cast", name), reads + as_wide + rounded, writer, 1)


def _narrow_copy(
    network: nx.DiGraph, copy: object, readers: list[object], writer: object, size: int
) -> None:
    """Charge a size if a reader is on the 16-bit side and the writer is not: (2), (4) and (6)."""
    readers = [node for node in dict.fromkeys(readers) if node != FULL_SIDE]
    if HALF_SIDE in readers or len(readers) == 1:
        _add(network, HALF_SIDE if HALF_SIDE in readers else readers[0], writer, size)
    elif readers and writer != HALF_SIDE:
        for reader in readers:
            network.add_edge(reader, copy)
        _add(network, copy, writer, size)


def _wide_copy(
    network: nx.DiGraph, copy: object, readers: list[object], writer: object, size: int
) -> None:
    """Charge a size if a reader is on the FP32 side and the writer is not: (3), (5) and (7)."""
    readers = [node for node in dict.fromkeys(readers) if node != HALF_SIDE]
    if FULL_SIDE in readers or len(readers) == 1:
        _add(network, writer, FULL_SIDE if FULL_SIDE in readers else readers[0], size)
    elif readers and writer != FULL_SIDE:
        for reader in readers:
            network.add_edge(copy, reader)
        _add(network, writer, copy, size)


def _add(network: nx.DiGraph, tail: object, head: object, size: int) -> None:
    """Add a capacity to an edge, unless no cut can ever have to pay it."""
    if tail in (head, FULL_SIDE) or head == HALF_SIDE or (tail == HALF_SIDE and head == FULL_SIDE):
        return
    if network.has_edge(tail, head):
        network[tail][head]["capacity"] += size
    else:
        network.add_edge(tail, head, capacity=size)


def _decision(op: Op, half: frozenset[str], precision: Precision) -> Decision:
    narrow = op.id in half and precision is not Precision.FP32
    if op.wish is not Wish.FREE or precision is Precision.FP32:
        reason = op.reason
    elif narrow:
        reason = f"{op.reason}; stored in {precision.short}: no choice writes fewer bytes"
    else:
        reason = f"{op.reason}; stored in f32: 16 bits would cost more bytes or casts"
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
    """The readers of a tensor by precision."""

    narrow: tuple[str, ...]
    wide: tuple[str, ...]
    inside: tuple[str, ...]


def _copies(
    row: Footprint, half: frozenset[str], precision: Precision
) -> tuple[tuple[Precision, ...], list[Cast]]:
    """Return the precisions a tensor is stored in and the casts that make them so."""
    if precision is Precision.FP32:
        return (Precision.FP32,), []
    tensor, writer, ops = row.tensor, row.writer, row.readers
    stored_half = writer is not None and writer.id in half
    arrives_wide = not stored_half or (writer is not None and writer.inside)
    inside = {op.id for op in ops if is_neutral(op, tensor.id)}
    narrow = {op.id for op in ops if op.id in half and not reads_wide(op, tensor.id)} - inside
    reads = _Reads(
        narrow=tuple(op.id for op in ops if op.id in narrow),
        wide=tuple(op.id for op in ops if op.id not in narrow | inside)
        + (("output",) if tensor.output else ()),
        inside=tuple(op.id for op in ops if op.id in inside),
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
        # Computed in FP32, stored in 16 bits: every reader that can takes the stored copy.
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
        return f"{tensor.fixed.value}, read in 16 bits"
    return "stored in FP32, read in 16 bits"
