"""How an optimizer is traced, frozen parameters, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles.eager_optimizer import batch, check_equal, eager_step, pair
from programs.dense_optimizers import OPTIMIZERS, optimizer_of
from programs.graphs import cross_entropy

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, CannotCapture
from mpcompile.step import arena, optimizer_start, record, update
from mpcompile.step.arena import ALIGNMENT
from mpcompile.step.update import Update, trace_update


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
    with pytest.raises(CannotCapture, match=r"Meeting\.step\(\) has a Python branch"):
        mpcompile.compile(model, cross_entropy, optimizer, batch(0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


FLAT = {
    "SGD": True, "Adam": True, "AdamW": True, "NAdam": True, "RAdam": True, "Adamax": True,
    "Adagrad": True, "Adadelta": True, "RMSprop": True,
    "ASGD": False, "Rprop": False, "Adafactor": False, "Muon": False,
}  # fmt: skip
"""Whether an optimizer gets flat arenas, and so one kernel an arena and not one a weight."""


def traced(optimizer: torch.optim.Optimizer) -> Update:
    parameters = optimizer.param_groups[0]["params"]
    shapes = {f"weight{place}": tuple(p.shape) for place, p in enumerate(parameters)}
    return trace_update(optimizer, [list(shapes)], {"weight0"}, shapes, torch.device("cpu"), None)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_which_optimizers_get_flat_arenas(name: str, options: dict[str, Any]) -> None:
    model, _ = pair()
    arenas = traced(optimizer_of(model, name, options)).arenas
    assert {item.flat for item in arenas} == {FLAT[name]}


PLACES = {
    "before the trace": (update, "fake_mode"),
    "before step()": (update, "optimizer_around"),
    "inside step()": (record.Recorder, "node_of"),
    "on each op of step()": (record.Origins, "now"),
    "behind the trace": (update, "drop_profiler_nodes"),
    "in the check of elements": (update, "_elementwise"),
    "in the layout": (arena.Arena, "__init__"),
    "in the first state": (optimizer_start, "group_of"),
    "in the check of zeros": (update, "keeps_zeros"),
}
"""Where a defect is planted: what is called and its name."""


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
@pytest.mark.parametrize("place", PLACES)
def test_a_defect_of_the_flat_trace_is_raised_and_does_not_make_the_update_slow(
    place: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = PLACES[place]
    real, calls = getattr(owner, name), [0]

    def broken_once(*values: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:  # only the flat trace: one that fails too would show the defect anyway
            raise kind("planted")
        return real(*values, **options)

    model, _ = pair()
    optimizer = torch.optim.AdamW(model.parameters())
    monkeypatch.setattr(owner, name, broken_once)
    with pytest.raises(kind, match="planted"):
        traced(optimizer)


class Square(torch.optim.SGD):
    """Moves each element by a mean over its parameter; takes a vector only if it is small."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for p in self.param_groups[0]["params"]:
            if p.numel() > ALIGNMENT and p.dim() != 2:
                raise ValueError("a long vector")
            p.add_(p.grad.view(-1, 2, 4).mean(0, keepdim=True).expand(p.numel() // 8, 2, 4)
                   .reshape(p.shape), alpha=-self.param_groups[0]["lr"])  # fmt: skip


def test_an_optimizer_that_refuses_long_flat_parameters_is_traced_a_parameter_at_a_time() -> None:
    weights = [torch.nn.Parameter(torch.randn(4, 8)), torch.nn.Parameter(torch.randn(2, 8))]
    made = traced(Square(weights, lr=0.1))
    assert [item.flat for item in made.arenas] == [False, False]


class Failing(torch.optim.SGD):
    """Fails on every parameter."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        raise RuntimeError("no luck")


def test_an_optimizer_that_fails_is_refused_with_its_own_error_as_the_cause() -> None:
    model, _ = pair()
    optimizer = Failing(model.parameters(), lr=0.01)
    with pytest.raises(CannotCapture, match=r"Failing\.step\(\) fails on .*: no luck") as caught:
        traced(optimizer)
    assert isinstance(caught.value.__cause__, RuntimeError)
