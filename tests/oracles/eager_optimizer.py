"""Train two copies of a model, by a step and by plain PyTorch; compare them bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from programs.graphs import Tied, cross_entropy
from torch import nn


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 10, (6,), generator=generator)
    return x, torch.randint(0, 10, (6,), generator=generator)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Tied()
    return model, copy.deepcopy(model)


def eager_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> torch.Tensor:
    value = cross_entropy(model, *batch(seed))
    optimizer.zero_grad()
    torch.autograd.backward(value)
    optimizer.step()
    return value.detach()


def check_equal(
    left: nn.Module,
    right: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(a, b), name
    mine, theirs = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert mine.keys() == theirs.keys()
    for index in mine:
        assert mine[index].keys() == theirs[index].keys()
        for key in mine[index]:
            assert torch.equal(mine[index][key], theirs[index][key]), key


def groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [
        {"params": matrices, "lr": 0.02, "weight_decay": 0.1},
        {"params": vectors, "lr": 0.001, "weight_decay": 0.0},
    ]
