"""Random neutral graphs for the planner's properties, and the best plan by brute force."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor
from mpcompile.plan.footprint import Cost, cost, footprints
from mpcompile.plan.planner import cheapest
from mpcompile.plan.rule import Wish


def random_flow(chooser: random.Random, free: int) -> Dataflow:
    """Return a graph with every kind of op and tensor.

    It has ops of every wish, inside, streaming, keeping, with arguments that stay FP32; views of
    whole tensors and of parts; ops with no result and with two; dead ends and outputs; borders of
    inner graphs, which may read tensors that are written later.

    Args:
        chooser: decides everything.
        free: the most ops that may take either precision.
    """
    tensors: list[Tensor] = []
    ops: list[Op] = []

    def sometimes(share: float) -> bool:
        return chooser.random() < share

    def tensor(fixed: Fixed | None = None, elements: int = 0) -> str:
        size = elements or chooser.randint(1, 50)
        tensors.append(Tensor(f"t{len(tensors)}", size, fixed, output=sometimes(0.15)))
        return tensors[-1].id

    def some(names: tuple[str, ...], share: float) -> tuple[str, ...]:
        return tuple(name for name in names if sometimes(share))

    for _ in range(chooser.randint(1, 3)):
        tensor(fixed=Fixed.PARAMETER)
    left = free
    for number in range(chooser.randint(1, free + 4)):
        wish = chooser.choices(list(Wish), (1, 3, 1))[0]
        if wish is Wish.FREE and not left:
            wish = Wish.HALF
        left -= wish is Wish.FREE
        view = wish is Wish.FREE and sometimes(0.3)
        border = view and sometimes(0.4)
        sources = [
            chooser.choice(tensors)
            for _ in range(1 if view and not border else chooser.randint(1, 3))
        ]
        reads = tuple(source.id for source in sources)
        elements = sources[0].elements if view and sometimes(0.5) else 0
        writes = tuple(tensor(elements=elements) for _ in range(chooser.choice((0, 1, 1, 1, 2))))
        ops.append(
            Op(
                id=f"o{number}",
                kind="op",
                rule="rule",
                wish=wish,
                inside=wish is not Wish.HALF and not view and sometimes(0.4),
                streams=not border and (view or sometimes(0.6)),
                reason="why",
                reads=reads,
                writes=writes,
                keeps=() if view else some((*reads, *writes), 0.4),
                full_reads=() if view else some(reads, 0.1),
                gathers=not view and sometimes(0.1),
                view=view,
            )
        )
    for place, op in enumerate(ops):
        if op.view and not op.streams and len(op.reads) > 1 and sometimes(0.5):
            ops[place] = replace(op, reads=(*op.reads, chooser.choice(tensors).id))
    return Dataflow(tuple(ops), tuple(tensors))


def best(flow: Dataflow) -> Cost:
    """Return the cost of the planner's cheapest assignment."""
    rows = footprints(flow)
    return cost(rows, cheapest(flow, rows))


def least(flow: Dataflow) -> Cost:
    """Return the minimum over all assignments, one per column, with pinned ops unchanged."""
    free = [op.id for op in flow.ops if op.wish is Wish.FREE]
    columns = np.arange(2 ** len(free))
    half = {op.id: np.full(len(columns), op.wish is Wish.HALF) for op in flow.ops}
    half |= {name: (columns >> bit) % 2 == 1 for bit, name in enumerate(free)}
    never = np.zeros(len(columns), bool)
    total, casts = np.zeros(len(columns), np.int64), np.zeros(len(columns), np.int64)

    def some(ops: tuple[Op, ...], narrow: bool) -> np.ndarray:
        return np.any([half[op.id] == narrow for op in ops], axis=0) if ops else never

    for row in footprints(flow):
        stored = half[row.writer.id] if row.writer is not None else never
        n, present = row.tensor.elements, row.present
        total += 2 * n * row.written * (2 - stored)
        total += 2 * n * (some(row.loads, True) & ~(stored & present))
        total += 4 * n * ((some(row.loads, False) | row.wide) & ~(~stored & present))
        total += 2 * n * some(row.kept, True) + 4 * n * some(row.kept, False)
        casts += some(row.reads, True) & ~stored
        casts += (some(row.reads, False) | row.wide | row.rounded) & stored
    return min(Cost(int(b), int(c)) for b, c in zip(total, casts, strict=True))
