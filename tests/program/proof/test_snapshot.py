"""What a program changes is seen by a snapshot and put back."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn

from mpcompile.program.proof.snapshot import Snapshot, TensorCopies, with_optimizer
from mpcompile.program.proof.surroundings import surroundings

CALLS = 0


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("centre", torch.zeros(2))
        self.centre: torch.Tensor
        self.calls, self.seen = 0, {1}
        self.log: list[Any] = []
        self.last: Any = None
        self.rows: deque[int] = deque([1, 2])
        self.draws, self.numbers = random.Random(0), np.random.default_rng(0)

    def forward(self, x: torch.Tensor) -> Any:
        global CALLS
        CALLS += 1
        self.calls += 1
        self.log.append(x)
        self.seen.add(2)
        self.rows.append(3)
        self.last = x
        self.new = x
        self.draws.random()
        self.numbers.random()
        self.centre = self.centre + 1
        return self.fc(x)


def test_changes_are_named_and_put_back() -> None:
    model = Recorder()
    times = 0

    def loss(model: nn.Module, x: torch.Tensor) -> Any:
        nonlocal times
        times += 1
        return model(x).sum()

    before, centre, drawn = dict(vars(model)), model.centre, model.draws.getstate()
    note = Snapshot(surroundings(model, loss))
    assert note.changes() == []
    loss(model, torch.ones(2))
    assert {change.path for change in note.changes()} == {
        "model.calls", "model.log", "model.seen", "model.rows", "model.last", "model.new",
        "model.centre", "model.draws", "model.numbers", "times of loss's closure",
        "the global CALLS",
    }  # fmt: skip
    assert sorted(note.drawn()) == ["model.draws", "model.numbers"]
    note.restore()
    assert note.changes() == []
    assert (times, CALLS, model.calls, model.log) == (0, 0, 0, [])
    assert (model.seen, list(model.rows), model.last) == ({1}, [1, 2], None)
    assert list(vars(model)) == list(before)
    assert model.centre is centre
    assert model.draws.getstate() == drawn


def test_tensors_are_put_back_with_storage_version_and_gradient() -> None:
    model = nn.Linear(2, 2)
    weight, bias = model.weight, model.bias
    weight.grad = torch.ones(2, 2)
    was, grad, version = weight.detach().clone(), weight.grad, weight._version
    storage = bias.data_ptr()
    copies = TensorCopies(surroundings(model, None).tensors)
    assert copies.changed() == []
    with torch.no_grad():
        weight.mul_(2)
    bias.data = torch.full((2,), float("nan"))
    bias.requires_grad_(False)
    weight.grad = None
    assert [path for path, _ in copies.changed()] == ["model.weight", "model.bias"]
    copies.restore()
    assert copies.changed() == []
    assert torch.equal(weight, was)
    assert weight._version == version
    assert weight.grad is grad
    assert bias.data_ptr() == storage
    assert bias.requires_grad


def test_a_write_through_data_is_seen() -> None:
    model = nn.Linear(2, 2)
    copies = TensorCopies(surroundings(model, None).tensors)
    was = model.weight.detach().clone()
    model.weight.data.zero_()
    assert [path for path, _ in copies.changed()] == ["model.weight"]
    copies.restore()
    assert torch.equal(model.weight, was)


def test_what_an_optimizer_holds() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        model(torch.ones(2)).sum().backward()
        optimizer.step()

    step()
    found = with_optimizer(surroundings(model, None), optimizer)
    note, copies = Snapshot(found), TensorCopies(found.tensors)
    was: Any = optimizer.state[model.weight]["exp_avg"].clone()
    step()
    optimizer.param_groups[0]["lr"] = 1.0
    note.restore()
    copies.restore()
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], was)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert float(optimizer.state[model.weight]["step"]) == 1.0
