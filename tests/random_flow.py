"""Random neutral graphs for the planner's properties."""

from __future__ import annotations

import random

from mpcompile.dataflow import Dataflow, Op, Tensor
from mpcompile.rules import Wish


def random_flow(chooser: random.Random, free: int) -> Dataflow:
    """Return a graph with every kind of op and tensor.

    Ops of every wish, inside, streaming, keeping, with arguments that stay FP32; views of whole
    tensors and of parts; ops with no result and with two; dead ends and outputs.

    Args:
        chooser: decides everything.
        free: the most ops that may take either precision.
    """
    tensors: list[Tensor] = []
    ops: list[Op] = []

    def sometimes(share: float) -> bool:
        return chooser.random() < share

    def tensor(fixed: str | None = None, elements: int = 0) -> str:
        size = elements or chooser.randint(1, 50)
        tensors.append(Tensor(f"t{len(tensors)}", size, fixed, output=sometimes(0.15)))
        return tensors[-1].id

    def some(names: tuple[str, ...], share: float) -> tuple[str, ...]:
        return tuple(name for name in names if sometimes(share))

    for _ in range(chooser.randint(1, 3)):
        tensor(fixed="a parameter")
    left = free
    for number in range(chooser.randint(1, free + 4)):
        wish = chooser.choices(list(Wish), (1, 3, 1))[0]
        if wish is Wish.FREE and not left:
            wish = Wish.HALF
        left -= wish is Wish.FREE
        view = wish is Wish.FREE and sometimes(0.3)
        sources = [chooser.choice(tensors) for _ in range(1 if view else chooser.randint(1, 3))]
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
                streams=view or sometimes(0.6),
                reason="why",
                reads=reads,
                writes=writes,
                keeps=() if view else some((*reads, *writes), 0.4),
                full_reads=() if view else some(reads, 0.1),
                gathers=not view and sometimes(0.1),
                view=view,
            )
        )
    return Dataflow(tuple(ops), tuple(tensors))
