"""The optimizer's state of weights that one run has trained already and another has not.

A weight has state from its first update on. A program in pieces reaches some weights later than
others, and a weight may have been frozen at first. So a checkpoint may hold state of a weight that
this step has not updated yet, and the other way around.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

_STATE = "optimizer."


class LateState:
    """State that is in a checkpoint or in a step, and not in both.

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
