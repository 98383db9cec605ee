"""Buffers that the first run of a program makes: as a graph has them, they are made before it.

A layer may keep a table whose size it learns from its input, and make it anew if the input has
another size. The table of the first run is then a constant for all batches of this size.
"""

from __future__ import annotations

import torch

from mpcompile.program.proof.effects import Effects
from mpcompile.program.proof.second_look import loss_of_a_run
from mpcompile.program.workload import Workload
from mpcompile.torch_private.own_derivatives import own_tensors


def settle(workload: Workload, effects: Effects) -> bool:
    """Leave the buffers that a first run puts in the place of others, if a second run keeps them.

    The second run must also give the same loss and write none of them. Otherwise the model stays as
    it was. What else the runs change is undone.

    Args:
        workload: the program.
        effects: knows what the program can read.

    Returns:
        Whether buffers were replaced.
    """
    before = _buffers(workload.model)
    with effects.undone_unsaid():
        first, now = loss_of_a_run(workload, effects.found), _buffers(workload.model)
        replaced = {place: value for place, value in now.items() if value is not before.get(place)}
        copies = {place: value.clone() for place, value in replaced.items() if value is not None}
        second, after = loss_of_a_run(workload, effects.found), _buffers(workload.model)
    if first is None or second is None or not torch.equal(first, second):
        return False
    for place, value in replaced.items():
        if after.get(place) is not value or value is None or not torch.equal(value, copies[place]):
            return False
    for (module, name), value in replaced.items():
        own_tensors(module)[1][name] = value
    return bool(replaced)


def _buffers(
    model: torch.nn.Module,
) -> dict[tuple[torch.nn.Module, str], torch.Tensor | None]:
    return {
        (module, name): value
        for module in model.modules()
        for name, value in own_tensors(module)[1].items()
    }
