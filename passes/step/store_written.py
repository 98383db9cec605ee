"""Let the update start from the trained weights that the program itself has written."""

from __future__ import annotations

from math import prod

import torch

from mpcompile.step.graph import StepGraph, add_inputs, call, placeholders
from mpcompile.step.slots import Role

_ATEN = torch.ops.aten


def store_written(step: StepGraph) -> int:
    """Write such weights into their arenas in the update graph; return their number.

    Forward may clip a weight (``weight.data.clamp_()``, ``Embedding(max_norm=...)``); the optimizer
    then moves the clipped weight. The write is part of the update, so a skipped step undoes it.

    Example:
        >>> before_and_after(store_written, step_before("store_written", clips=True))
        update
        + next_w  f32[3,4]  input next.w
        + reshape_default  f32[12]  reshape next_w [-1]
        + slice_scatter_default  f32[32]  slice_scatter arena0_master reshape_default 0 0 12
        - add  f32[32]  add arena0_master arena0_grad alpha=neg
        + add  f32[32]  add slice_scatter_default arena0_grad alpha=neg
    """
    graph = step.update.graph
    given = placeholders(graph)
    count = 0
    for arena in step.arenas:
        slots = [step.slots.get(f"next.{name}") for name in arena.parameters]
        written = [slot for slot in slots if slot is not None and slot.name not in given]
        master = given.get(f"{arena.name}.master")
        if master is None or not written:
            continue
        assert step.slots[f"{arena.name}.master"].role is Role.MASTER
        readers = list(master.users)
        inputs = add_inputs(graph, written, master)
        value = master
        with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
            for slot, node in zip(written, inputs, strict=True):
                if not arena.flat:
                    value = call(graph, _ATEN.alias.default, node)
                    continue
                start = arena.offset_of(slot.name.removeprefix("next."))
                row = call(graph, _ATEN.reshape.default, node, [-1])
                end = start + prod(slot.shape)
                value = call(graph, _ATEN.slice_scatter.default, value, row, 0, start, end)
        for reader in readers:
            reader.replace_input_with(master, value)
        count += len(written)
    return count
