"""The state of a step before the first step; the user's tensors are not moved."""

from __future__ import annotations

import torch

from mpcompile.onnx.random_masks import PRIME
from mpcompile.onnx.train_file import Piece
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.complex_parameters import as_real
from mpcompile.step.arena import Arena, arena_views
from mpcompile.step.optimizer_start import BEGUN, has_begun
from mpcompile.step.slots import Role, Slot
from mpcompile.step.transformed import Transformed


def first_state(transformed: Transformed, slots: tuple[Slot, ...]) -> dict[str, torch.Tensor]:
    """Return the value of each state slot, on the CPU.

    Weights come from the model. Optimizer state comes from the optimizer if it has any.
    """
    step, given = transformed.step, {i.name: i.value for i in transformed.forward.inputs}
    assert step is not None
    state: dict[str, torch.Tensor] = {}
    arenas = {arena.name: arena for arena in step.arenas}
    for slot in slots:
        value = torch.zeros(slot.shape, dtype=slot.dtype)
        arena = arenas.get(slot.name.partition(".")[0])
        if slot.role in (Role.MASTER, Role.WORKING):
            assert arena is not None
            views = arena_views(arena, value)
            for name, view in zip(arena.parameters, views, strict=False):
                view.copy_(given[name])
        elif slot.role is Role.OPTIMIZER:
            assert arena is not None
            _fill(transformed, arena, slot.name.removeprefix(f"{arena.name}."), value)
        elif slot.role in (Role.BUFFER, Role.CONSTANT):
            value.copy_(given[slot.name])
        elif slot.name == SCALE:
            value.fill_(transformed.choices.scale.initial)
        elif slot.role in (Role.BATCH, Role.HYPER):
            continue
        state[slot.name] = value
    return state


def first_seed() -> torch.Tensor:
    """Return the first seed of the random masks, derived from that of ``torch.manual_seed``.

    Each step adds 1. Neighbouring seeds of torch therefore give distant first seeds; else one run
    would draw the numbers that another run draws a step later.
    """
    return torch.tensor(torch.initial_seed() * 0x5DEECE66D % PRIME, dtype=torch.int64)


def pieces(transformed: Transformed, slots: tuple[Slot, ...]) -> tuple[Piece, ...]:
    """Return the slot and offset of each parameter, buffer and tensor of optimizer state."""
    step = transformed.step
    assert step is not None
    known = {slot.name: slot for slot in slots}
    found: list[Piece] = []
    for arena in step.arenas:
        keys = {"master": "", **{key: f"::{key}" for key in transformed.initial[arena.name]}}
        for key, suffix in keys.items():
            slot = known.get(f"{arena.name}.{key}")
            if slot is None:
                continue
            numbers = arena.flat and slot.shape != arena.shape
            offsets = range(len(arena.parameters)) if numbers else arena.offsets
            for name, start, shape in zip(arena.parameters, offsets, arena.shapes, strict=False):
                whole = slot.shape if not arena.flat else shape
                found.append(Piece(f"{name}{suffix}", slot.name, start, () if numbers else whole))
    kept = (slot for slot in slots if slot.role in (Role.BUFFER, Role.CONSTANT))
    return (*found, *(Piece(slot.name, slot.name, 0, slot.shape) for slot in kept))


def _fill(transformed: Transformed, arena: Arena, key: str, value: torch.Tensor) -> None:
    """Fill one kind of optimizer state of an arena, as `TrainStep` does."""
    optimizer = transformed.workload.optimizer
    assert optimizer is not None
    named = {item.name: item.tensor for item in transformed.forward.inputs}
    initial = transformed.initial[arena.name]
    if key == BEGUN:
        states = (optimizer.state.get(named[name], {}) for name in arena.parameters)
        value.fill_(has_begun(states, initial))
        return
    first = initial[key]
    numbers = arena.flat and first.dim() == 0
    views = value.unbind() if numbers else arena_views(arena, value)
    for name, view in zip(arena.parameters, views, strict=True):
        entry = optimizer.state.get(named[name], {}).get(key)
        if isinstance(entry, torch.Tensor):
            view.copy_(as_real(entry))
        else:
            view.fill_(first.flatten()[0])
