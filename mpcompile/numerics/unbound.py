"""What the gradient graph of a step reads, before any weight has moved into an arena."""

from __future__ import annotations

from math import prod

import torch

from mpcompile.numerics.lockstep import Moment
from mpcompile.program.random_state import RandomState
from mpcompile.step.graph import StepGraph, placeholders
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Transformed


def unbound_moment(transformed: Transformed, random: RandomState, scale: float) -> Moment:
    """Return the inputs of a gradient graph for the workload's batch; nothing is changed.

    The 16-bit copies of weights are made here, as a `TrainStep` makes them in its arenas.

    Args:
        transformed: a program with a step, whose weights have values.
        random: the random numbers to draw.
        scale: the loss scale, if the step has one.
    """
    step, workload = transformed.step, transformed.workload
    assert step is not None
    tensors = {item.name: item.value for item in transformed.forward.inputs}
    batch = [name for name, slot in step.slots.items() if slot.role is Role.BATCH]
    given = dict(zip(batch, workload.batch, strict=True))
    values: dict[str, torch.Tensor] = {}
    masters: dict[str, torch.Tensor] = {}
    for name, node in placeholders(step.gradient.graph).items():
        slot = step.slots[name]
        if slot.role is Role.BATCH:
            values[name] = given[name].detach()
        elif slot.role is Role.SCALE:
            device = node.meta["val"].device
            values[name] = torch.full(slot.shape, scale, dtype=slot.dtype, device=device)
        elif slot.role in (Role.WORKING, Role.SHARED):
            masters[name] = _joined(step, name, tensors)
            values[name] = masters[name].to(slot.dtype)
        elif slot.role is Role.MASTER:
            values[name] = tensors[name].contiguous()  # as it is in an arena
        else:
            values[name] = tensors[name]
    return Moment(step, values, masters, random)


def _joined(step: StepGraph, name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the master behind a slot: one weight, or several side by side as in their arena."""
    first, *others = step.members(name)
    shape = step.slots[name].shape
    if name not in step.joined:
        return tensors[first].contiguous()
    arena = step.arena_of(first)
    start = arena.offset_of(first)
    whole = tensors[first].new_zeros(prod(shape))
    for member in (first, *others):
        value, begin = tensors[member].flatten(), arena.offset_of(member) - start
        whole[begin : begin + value.numel()] = value
    return whole.view(shape)
