"""The user's own model and optimizer: their tensors by name, and when they can be saved."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
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


_STATE = "optimizer."


class LateState:
    """The optimizer's state that is in a checkpoint or in a step, and not in both.

    A weight has state from its first update on. A program in pieces reaches some weights later than
    others, and a weight may have been frozen at first. So a checkpoint may hold state of a weight
    that this step has not updated yet, and the other way around.

    Args:
        stored: the tensors of a checkpoint by name.
        wanted: those of the step, as `mpcompile.train.users_state.named_of_user` names them.
        optimizer: of the step.

    Attributes:
        new: the names of state in the checkpoint, of weights that have none in the step.
        gone: the names of state in the step, of weights that have none in the checkpoint.
    """

    def __init__(
        self,
        stored: Mapping[str, torch.Tensor],
        wanted: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        self._optimizer, self._stored = optimizer, stored
        self._weights = {
            name.removeprefix("model."): value
            for name, value in wanted.items()
            if name.startswith("model.") and id(value) in held
        }
        mine, theirs = _by_weight(wanted), _by_weight(stored)
        common = {frozenset(mine[name]) for name in mine.keys() & theirs.keys()}
        self.new = self._only_in(theirs, mine, common)
        self.gone = self._only_in(mine, theirs, common)

    def _only_in(
        self,
        one: Mapping[str, list[str]],
        other: Mapping[str, list[str]],
        common: set[frozenset[str]],
    ) -> set[str]:
        """Return the state that only one side has, if other weights have the same kinds of it."""
        return {
            f"{_STATE}{key}.{name}"
            for name, keys in one.items()
            if name not in other and name in self._weights and frozenset(keys) in common
            for key in keys
        }

    def take_over(self) -> None:
        """Give weights the state that only the checkpoint has, and drop what only the step has."""
        state = self._optimizer.state
        for name in {_weight(each) for each in self.gone}:
            state.pop(self._weights[name], None)
        for each in self.new:
            weight = self._weights[_weight(each)]
            key = each.removeprefix(_STATE).partition(".")[0]
            value = self._stored[each].clone()
            place = value.device if value.dim() == 0 else weight.device
            state[weight][key] = value.to(place)


def _weight(name: str) -> str:
    return name.removeprefix(_STATE).partition(".")[2]


def _by_weight(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Return the kinds of state that each weight has."""
    found: dict[str, list[str]] = {}
    for name in tensors:
        if name.startswith(_STATE):
            key, _, weight = name.removeprefix(_STATE).partition(".")
            found.setdefault(weight, []).append(key)
    return found
