"""Programs that look at values train in pieces as in eager PyTorch, with all that a step has."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from torch import Tensor, nn

import mpcompile
from mpcompile import CannotCapture, Policy


def net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16)
    return nn.Sequential(nn.Linear(8, 16, bias=False), norm, nn.ReLU(), nn.Linear(16, 4))


def branch(model: nn.Module, x: Tensor) -> Any:
    out = model(x)
    loss = out.square().mean()
    if loss.item() > 0.3:
        loss = loss * 0.5
    return loss, {"out": out, "name": "result"}


def count(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    rows = int((x[:, 0] > 0).sum()) + 1
    result: Tensor = out[:rows].square().mean() + out.mean() ** 2
    return result


def walk(model: nn.Module, x: Tensor) -> Tensor:
    out, steps = model(x), 0
    while out.square().mean().item() > 0.05 and steps < 4:
        out, steps = out * 0.7, steps + 1
    result: Tensor = out.square().mean()
    return result


def alone(model: nn.Module, x: Tensor) -> Tensor:
    value: Tensor = branch(model, x)[0]
    return value


@pytest.mark.parametrize("loss", [alone, count, walk])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_in_eager_pytorch(loss: Any, accumulate: int) -> None:
    pair = SideBySide(net(), loss, batches(1, (6, 8))[0], accumulate=accumulate)
    for mine, theirs in pair.train(batches(6, (6, 8), seed=1)):
        assert mine == theirs
    assert pair.differing() == []
    assert pair.step.pieces


def test_16_bits_are_near_to_fp32_and_layers_have_casts() -> None:
    pair = SideBySide(net(), alone, batches(1, (6, 8))[0], policy=Policy())
    for mine, theirs in pair.train(batches(6, (6, 8), seed=1)):
        assert mine == pytest.approx(theirs, rel=5e-3)
    assert any(piece.casts for piece in pair.step.pieces)


def test_a_skipped_step_leaves_every_state_bit_identical() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    (x,) = batches(1, (6, 8))[0]
    step = mpcompile.compile(model, alone, optimizer, (x,))
    step(x)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    step(x * float("inf"))
    assert step.skipped == 1
    for old, new in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        for one, other in zip(leaves(old), leaves(new), strict=True):
            assert torch.equal(one, other)


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16)
    return nn.Sequential(nn.Linear(8, 16), norm, nn.Dropout(0.5), nn.Linear(16, 4))


def test_a_skipped_step_leaves_buffers_and_draws_as_many_numbers_as_eager() -> None:
    model, eager = with_dropout(), with_dropout()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = batches(3, (6, 8))
    step = mpcompile.compile(model, alone, optimizer, data[0])
    step(*data[0])
    start = torch.get_rng_state()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    copies = {name: value.clone() for name, value in step._state.items() if "working" in name}
    step(data[1][0] * float("inf"))
    after = torch.get_rng_state()
    assert step.skipped == 1
    for old, new in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        for one, other in zip(leaves(old), leaves(new), strict=True):
            assert torch.equal(one, other)
    assert copies
    assert all(torch.equal(value, step._state[name]) for name, value in copies.items())
    torch.set_rng_state(start)
    alone(eager, data[1][0] * float("inf"))
    assert torch.equal(torch.get_rng_state(), after)
    step(*data[2])
    assert step.taken == 2


def leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [leaf for item in items for leaf in leaves(item)]


def test_a_run_continues_from_a_checkpoint(tmp_path: Path) -> None:
    data = batches(6, (6, 8), seed=1)

    def made() -> Any:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return mpcompile.compile(model, alone, optimizer, data[0]), model

    step, model = made()
    for batch in data[:3]:
        step(*batch)
    step.save(tmp_path)
    rest = [float(step(*batch)) for batch in data[3:]]
    again, other = made()
    again.load(tmp_path)
    assert [float(again(*batch)) for batch in data[3:]] == rest
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_clipping_and_what_is_beside_the_loss() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (x,) = batches(1, (6, 8))[0]
    step = mpcompile.compile(model, branch, optimizer, (x,), max_grad_norm=1e-3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    loss, beside = step(x)
    assert loss.dim() == 0
    assert beside["name"] == "result"
    assert beside["out"].shape == (6, 4)
    moved = [(value - before[key]).square().sum() for key, value in model.named_parameters()]
    assert float(sum(moved)) ** 0.5 == pytest.approx(1e-4, rel=1e-2)


def test_numbers_beside_the_loss_are_those_of_each_call() -> None:
    def loss(model: nn.Module, x: Tensor) -> Any:
        value = model(x).square().mean()
        return value, {"text": f"{value.item():.3e}"}

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches(3, (6, 8))
    step = mpcompile.compile(model, loss, optimizer, data[0])
    for batch in data:
        value, beside = step(*batch)
        assert beside["text"] == f"{float(value):.3e}"


def test_the_breaks_are_said_once_with_their_lines(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (x,) = batches(1, (6, 8))[0]
    step = mpcompile.compile(model, alone, optimizer, (x,))
    with caplog.at_level(logging.WARNING, "mpcompile"):
        step(x)
        step(x)
    [said] = [each.getMessage() for each in caplog.records if "runs in" in each.getMessage()]
    line = branch.__code__.co_firstlineno + 3
    assert f"test_program_in_pieces.py:{line}: " in said
    assert "control flow depends on the value of a tensor" in said
    assert f"py:{line}" in str(step.pieces[0])


def test_whole_refuses_it() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotCapture, match="control flow depends on the value"):
        mpcompile.compile(model, alone, optimizer, batches(1, (6, 8))[0], whole=True)
