"""Changes to a program between two calls of its step; see `programs.changing`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from programs import changing
from programs.changing import Options, Side


def evaluation(side: Side, turn: int) -> None:
    side.model.train(turn != 1)


def one_norm(side: Side, turn: int) -> None:
    side.model.norm.train(turn != 1)


def dropout(side: Side, turn: int) -> None:
    side.model.drop.p = 0.3 if turn == 1 else 0.1


def attribute(side: Side, turn: int) -> None:
    side.model.gain = 0.7 if turn == 1 else 0.5


def attribute_of_object(side: Side, turn: int) -> None:
    side.model.options.weight = 0.7 if turn == 1 else 1.0


def another_object(side: Side, turn: int) -> None:
    side.model.options = Options(weight=0.7 if turn == 1 else 1.0)


def element(side: Side, turn: int) -> None:
    side.model.options.widths[0] = 0.7 if turn == 1 else 1.0


def number_of_loss(side: Side, turn: int) -> None:
    side.loss.beta = 0.0 if turn == 1 else 0.01


def global_number(side: Side, turn: int) -> None:
    changing.TEMPERATURE = 2.0 if turn == 1 else 1.0


def submodule(side: Side, turn: int) -> None:
    if turn == 1:
        side.model.drop = nn.Identity()  # type: ignore[assignment]


def buffer_replaced(side: Side, turn: int) -> None:
    if turn:
        side.model.shift = torch.full((16,), 0.1 * turn)


def statistic_replaced(side: Side, turn: int) -> None:
    if turn:
        side.model.norm.running_mean = torch.full((16,), 0.1 * turn)


def buffer_data(side: Side, turn: int) -> None:
    if turn:
        side.model.shift.data = torch.full((16,), 0.1 * turn)


def buffer_written(side: Side, turn: int) -> None:
    side.model.shift.fill_(0.1 * turn)


def parameter_written(side: Side, turn: int) -> None:
    side.model.one.bias.data.fill_(0.1 * turn)
    with torch.no_grad():
        side.model.head.weight.mul_(0.5)


def parameter_data(side: Side, turn: int) -> None:
    if turn:
        side.model.two.bias.data = torch.full((16,), 0.1 * turn)
        side.model.head.weight.data = side.model.head.weight.data * 0.5


def parameter_replaced(side: Side, turn: int) -> None:
    if turn == 1:
        before, made = side.model.head.weight, nn.Parameter(torch.full((4, 16), 0.01))
        side.model.head.weight = made
        members = side.optimizer.param_groups[0]["params"]
        members[[id(member) for member in members].index(id(before))] = made
        del side.optimizer.state[before]


def frozen(side: Side, turn: int) -> None:
    side.model.two.requires_grad_(turn != 1)


def unfrozen(side: Side, turn: int) -> None:
    side.model.two.requires_grad_(turn == 1)
    side.model.one.bias.requires_grad_(turn != 2)


def a_hook_of_a_module(side: Side, turn: int) -> None:
    if turn == 1:
        side.model.two.register_forward_hook(lambda _, __, result: result * 2)


def a_hook_that_goes(side: Side, turn: int) -> None:
    if turn == 0:
        side.model.two.register_forward_hook(lambda _, __, result: result * 2)
    elif turn == 1:
        side.model.two._forward_hooks.clear()


def a_hook_of_a_parameter(side: Side, turn: int) -> None:
    if turn == 1:
        side.model.two.weight.register_hook(lambda gradient: gradient * 0.1)


def a_hook_after_the_update(side: Side, turn: int) -> None:
    def clamp(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for value in optimizer.param_groups[0]["params"]:
                value.clamp_(-0.1, 0.1)

    if turn == 1:
        side.optimizer.register_step_post_hook(clamp)


def state_cleared(side: Side, turn: int) -> None:
    if turn:
        side.optimizer.state.clear()


def state_of_one_cleared(side: Side, turn: int) -> None:
    if turn:
        side.optimizer.state.pop(side.model.one.weight)


def state_loaded(side: Side, turn: int) -> None:
    if turn:
        side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))


def groups_replaced(side: Side, turn: int) -> None:
    if turn == 1:
        [group] = side.optimizer.param_groups
        matrices = [value for value in group["params"] if value.dim() == 2]
        vectors = [value for value in group["params"] if value.dim() == 1]
        side.optimizer.param_groups[:] = [
            {**group, "params": matrices},
            {**group, "params": vectors, "weight_decay": 0.0, "lr": 3e-3},
        ]
