"""A function that Dynamo gives up for a loop over values: the layers it calls are compiled."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from torch import Tensor, nn

import mpcompile
from mpcompile import Policy


def trunk() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def each_row(model: nn.Module, x: Tensor) -> Tensor:
    parts = []
    for row, out in zip(x, model(x), strict=True):
        large = int((row > 0.5).sum())
        parts.append(out.square().mean() if large > 2 else out.abs().sum())
    return torch.stack(parts).mean()


def test_it_trains_as_in_eager_pytorch() -> None:
    pair = SideBySide(trunk(), each_row, batches(1, (6, 8))[0])
    for mine, theirs in pair.train(batches(5, (6, 8), seed=1)):
        assert mine == theirs
    assert pair.differing() == []


def test_the_layers_are_one_piece_in_16_bits(caplog: pytest.LogCaptureFixture) -> None:
    pair = SideBySide(trunk(), each_row, batches(1, (6, 8))[0], policy=Policy())
    with caplog.at_level(logging.WARNING, "mpcompile"):
        [(mine, theirs)] = pair.train(batches(1, (6, 8), seed=1))
    assert mine == pytest.approx(theirs, rel=1e-2)
    assert mine != theirs
    assert [bool(piece.casts) for piece in pair.step.pieces] == [True]
    [said] = [each.getMessage() for each in caplog.records if "runs in" in each.getMessage()]
    assert f"test_loops.py:{each_row.__code__.co_firstlineno + 3}" in said


def test_the_model_itself_stays_eager_pytorch() -> None:
    model = trunk()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (x,) = batches(1, (6, 8))[0]
    step = mpcompile.compile(model, each_row, optimizer, (x,), policy=Policy())
    step(x)
    pieces = len(step.pieces)
    model.eval()
    other = copy.deepcopy(model)
    again: Any = pickle.loads(pickle.dumps(model))
    seen = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    assert model(x).dtype is torch.float32
    handle.remove()
    assert seen == [1]
    assert len(step.pieces) == pieces
    for each in (other, again):
        assert torch.equal(each(x), model(x))


def test_two_steps_of_one_model_have_pieces_of_their_own() -> None:
    model = trunk()
    (x,) = batches(1, (6, 8))[0]
    halves = [model[0].parameters(), model[3].parameters()]
    steps = [
        mpcompile.compile(model, each_row, torch.optim.SGD(half, lr=0.1), (x,)) for half in halves
    ]
    for step in (*steps, *steps):
        step(x)
    assert [bool(step.pieces and step.pieces[0].casts) for step in steps] == [True, True]


SCRIPT = """
import torch, mpcompile
from torch import nn

def loss(model, x):
    value = model(x).square().mean()
    return value * 2 if value.item() > 1 else value

torch.manual_seed(0)
model = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = mpcompile.compile(model, loss, optimizer, (torch.ones(2, 4),))
step(torch.ones(2, 4))
"""


def test_only_our_sentence_is_said_of_a_break() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True
    )
    assert "runs in 1 piece" in done.stderr
    assert "Graph break" not in done.stderr
