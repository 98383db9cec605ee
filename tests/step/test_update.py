"""How an optimizer is traced, frozen parameters, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles.eager_optimizer import batch, check_equal, eager_step, pair
from programs.graphs import cross_entropy

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, CannotCapture


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
