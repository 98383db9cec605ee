"""Programs whose loss reaches other weights, or writes other buffers, for each batch."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide
from torch import Tensor, nn

import mpcompile
from mpcompile import BadInput

pytestmark = pytest.mark.filterwarnings("ignore::mpcompile.errors.UnusedParameters")


class Heads(nn.Module):
    """One head for batches with a positive sum, another with a norm for all others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(8, 16)
        self.one = nn.Linear(16, 4)
        self.other = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.trunk(x).relu()
        result: Tensor = self.one(hidden) if x.sum().item() > 0 else self.other(hidden)
        return result


class Dropped(nn.Module):
    """Leaves out layers at random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for position, layer in enumerate(self.layers):
            if position == 0 or torch.rand(()).item() > 0.4:
                x = x + layer(x).tanh()
        return x


def loss(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = (model(x) - 1).square().mean()
    return result


def signed(signs: str, rows: int = 6) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.rand(rows, 8, generator=generator) for _ in signs]
    return [(x if sign == "+" else -x,) for x, sign in zip(made, signs, strict=True)]


@pytest.mark.parametrize("make", [Heads, Dropped])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    ],
)
def test_each_batch_trains_the_weights_that_its_loss_reaches(make: Any, optimizer: Any) -> None:
    data = signed("+--+-+++-")
    pair = SideBySide(make(), loss, data[0], optimizer)
    for mine, theirs in pair.train(data):
        assert mine == theirs
    assert pair.differing() == []
    for value, other in zip(pair.model.parameters(), pair.eager.parameters(), strict=True):
        mine, theirs = (
            pair.optimizer.state.get(value, {}),
            pair.eager_optimizer.state.get(other, {}),
        )
        assert mine.keys() == theirs.keys()
        for key, state in mine.items():
            assert torch.equal(torch.as_tensor(state), torch.as_tensor(theirs[key])), key


def test_the_program_runs_once_for_a_batch_that_takes_another_way() -> None:
    model = Dropped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = signed("++++++")
    step = mpcompile.compile(model, loss, optimizer, data[0])
    assert model.calls == 0
    for batch in data:
        step(*batch)
    assert model.calls == len(data)


def test_graphs_of_a_way_are_used_again(caplog: pytest.LogCaptureFixture) -> None:
    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = signed("+-+-+-")
    step = mpcompile.compile(model, loss, optimizer, data[0])
    for batch in data[:4]:  # Dynamo takes a number for a constant once
        step(*batch)
    caplog.clear()
    pieces, known = len(step.pieces), len(step._all._programs)
    with caplog.at_level(logging.WARNING, "mpcompile"):
        for batch in data[4:]:
            step(*batch)
    assert len(step.pieces) == pieces
    assert len(step._all._programs) == known
    assert not caplog.records


@pytest.mark.parametrize("make", [Heads, Dropped])
def test_another_shape_of_batch_uses_the_same_program(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = [*signed("+-"), *signed("+-", rows=4), *signed("-+")]
    with caplog.at_level(logging.WARNING, "mpcompile"):
        pair = SideBySide(make(), loss, data[0])
        for mine, theirs in pair.train(data):
            assert mine == theirs
    assert pair.differing() == []
    assert sum("runs in" in each.getMessage() for each in caplog.records) == 1


@pytest.mark.parametrize("first", ["+", "-"])
def test_a_skipped_step_of_another_way_changes_nothing(first: str) -> None:
    model = Heads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = signed(first + ("-" if first == "+" else "+"))
    step = mpcompile.compile(model, loss, optimizer, data[0])
    step(*data[0])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    step(data[1][0] * float("inf"))
    assert step.skipped == 1
    state, moments = before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    now = optimizer.state_dict()["state"]
    for index, kept in moments.items():
        assert all(torch.equal(value, now[index][key]) for key, value in kept.items())
    step(*data[1])
    step(*data[0])
    assert step.taken == 3


@pytest.mark.parametrize("first", ["+", "-"])
def test_a_run_over_two_ways_continues_from_a_checkpoint(tmp_path: Path, first: str) -> None:
    data = signed("+-+-+--")

    def made() -> Any:
        model = Heads()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return mpcompile.compile(model, loss, optimizer, data[0]), model

    step, model = made()
    for batch in data[:3]:
        step(*batch)
    step.save(tmp_path)
    rest = [float(step(*batch)) for batch in data[3:]]
    again, other = made()
    again(*signed(first)[0])
    again.load(tmp_path)
    assert [float(again(*batch)) for batch in data[3:]] == rest
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_state_that_a_checkpoint_lacks_is_dropped(tmp_path: Path) -> None:
    data = signed("++-+-")
    models = Heads(), Heads()
    steps = [
        mpcompile.compile(model, loss, torch.optim.AdamW(model.parameters(), lr=1e-2), data[0])
        for model in models
    ]
    steps[0](*data[0])
    steps[0].save(tmp_path)
    for batch in data:
        steps[1](*batch)
    steps[1].load(tmp_path)
    for batch in data[1:]:
        assert float(steps[0](*batch)) == float(steps[1](*batch))
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_gradients_follow_the_way_of_the_batch() -> None:
    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = signed("+-")
    step = mpcompile.compile(model, loss, optimizer, data[0], policy=mpcompile.FULL_PRECISION)
    found = step.gradients(*data[1])
    eager = copy.deepcopy(model)
    loss(eager, *data[1]).backward()
    wanted = {n: value.grad for n, value in eager.named_parameters() if value.grad is not None}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_one_update_has_one_way_and_a_refusal_changes_nothing() -> None:
    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = signed("++--")
    step = mpcompile.compile(model, loss, optimizer, data[0], accumulate=2)
    step(*data[0])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadInput, match="1 of 2 micro-batches"):
        step(*data[2])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    step(*data[1])
    assert step.taken == 1
    step(*data[2])
    step(*data[3])
    assert step.taken == 2
