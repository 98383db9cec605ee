"""The user's own model and optimizer: their tensors by name, and when they can be saved."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from mpcompile.errors import BadInput
from mpcompile.step.slices import is_absent
from mpcompile.train.bound_optimizer import BoundOptimizer


def named_of_user(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return the tensors of model and optimizer by name, not copied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        **{f"model.{name}": value for name, value in model.named_parameters()},
        **{f"model.{name}": value for name, value in model.named_buffers()},
        **{
            f"optimizer.{key}.{names[id(parameter)]}": value
            for parameter, entries in optimizer.state.items()
            if id(parameter) in names
            for key, value in entries.items()
            if isinstance(value, torch.Tensor)
        },
    }


def names_in(model: torch.nn.Module) -> set[str]:
    """Return the names of a model's parameters and buffers."""
    return {name for name, _ in (*model.named_parameters(), *model.named_buffers())}


def give_own_memory(parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Copy parameters and their state out of the arenas, which can then be freed."""
    for parameter in parameters:
        parameter.data = parameter.detach().clone()
        entries = optimizer.state.get(parameter, {})
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                entries[key] = value.clone()


def refuse_to_save_slices(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: Sequence[torch.Tensor],
    entries: BoundOptimizer,
) -> None:
    """Make ``state_dict()`` of a model or optimizer fail if this process holds slices only."""
    reference = weakref.ref(entries)

    def check(*_: Any) -> None:
        mine = reference()
        if any(map(is_absent, trained)) or (mine is not None and mine.are_sliced()):
            raise BadInput(
                "this process holds only slices of the weights and of the optimizer's state",
                fix="call step.save, or state_dict() inside `with step.whole():`",
            )

    optimizer.register_state_dict_pre_hook(check)
    for module in model.modules():
        module.register_state_dict_pre_hook(check)
