"""How an optimizer is traced, frozen parameters, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graphs import Tied, cross_entropy
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, CannotCapture


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


def test_an_optimizer_that_mixes_elements_is_traced_a_parameter_at_a_time() -> None:
    left, right = pair()
    optimizers = [
        torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=0.01)
        for model in (left, right)
    ]
    step = mpcompile.compile(left, cross_entropy, optimizers[0], batch(0), policy=FULL_PRECISION)
    assert all(not arena.flat for arena in step.step.arenas)
    for seed in range(50):
        assert torch.equal(step(*batch(seed)), eager_step(right, optimizers[1], seed))
    check_equal(left, right, (optimizers[0], optimizers[1]))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [
        {"params": matrices, "lr": 0.02, "weight_decay": 0.1},
        {"params": vectors, "lr": 0.001, "weight_decay": 0.0},
    ]


def test_frozen_parameters_stay_and_are_not_in_an_arena() -> None:
    left, right = pair()
    for model in (left, right):
        dict(model.named_parameters())["gate.weight"].requires_grad_(False)
    mine, theirs = (torch.optim.AdamW(model.parameters(), lr=0.01) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(5):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
    assert not any("gate.weight" in arena.parameters for arena in step.step.arenas)
    check_equal(left, right, (mine, theirs))


def test_what_needs_a_closure_is_bad_input() -> None:
    model, _ = pair()
    with pytest.raises(BadInput, match=r"LBFGS\.step\(\) needs a closure"):
        mpcompile.compile(model, cross_entropy, torch.optim.LBFGS(model.parameters()), batch(0))


def test_an_optimizer_for_sparse_gradients_is_bad_input() -> None:
    model, _ = pair()
    optimizer = torch.optim.SparseAdam(list(model.parameters()))
    with pytest.raises(BadInput, match="SparseAdam takes sparse gradients"):
        mpcompile.compile(model, cross_entropy, optimizer, batch(0))


class Meeting(torch.optim.SGD):
    """Scales each gradient by all of them, and branches on the scale."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norm = torch.stack([g.norm() for g in gradients]).norm()
            if norm.item() > 1e-3:
                for p in group["params"]:
                    p.add_(p.grad / norm, alpha=-group["lr"])


def test_a_branch_in_a_step_where_parameters_meet_is_refused_and_nothing_is_changed() -> None:
    model, _ = pair()
    optimizer = Meeting(model.parameters(), lr=0.01)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotCapture, match=r"Meeting\.step\(\) decides in Python"):
        mpcompile.compile(model, cross_entropy, optimizer, batch(0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
