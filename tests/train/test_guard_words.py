"""The check before each call: quick where words of memory can be read, the same without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from programs import changes, changing
from programs.changing import compiled, sides, train_both
from torch import nn

import mpcompile
from mpcompile.torch_private import dictionary_words, tensor_words
from mpcompile.train.changes.guarded_values import GuardedValues
from mpcompile.train.changes.guards import Guard

CHANGES = """
    evaluation one_norm dropout attribute attribute_of_object another_object element number_of_loss
    global_number submodule a_hook_of_a_module a_hook_that_goes a_hook_of_a_parameter buffer_written
    parameter_written parameter_data a_hook_after_the_update state_cleared state_loaded
    buffer_replaced statistic_replaced buffer_data parameter_replaced frozen unfrozen
    state_of_one_cleared groups_replaced
""".split()


@pytest.fixture(autouse=True)
def _temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "TEMPERATURE", 1.0)


@pytest.fixture
def no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be found in memory, as on a version that stores it in another way."""
    monkeypatch.setattr(tensor_words, "layout_of_tensors", lambda: None)
    monkeypatch.setattr(dictionary_words, "_place", lambda: None)


@pytest.mark.usefixtures("no_words")
@pytest.mark.parametrize("change", CHANGES)
def test_without_words_each_change_is_taken_up(change: str) -> None:
    mine, theirs = sides()
    for _ in train_both(compiled(mine), mine, theirs, getattr(changes, change), calls=6):
        pass


def net() -> tuple[Any, torch.optim.Optimizer, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    model[0].bias.requires_grad_(False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), (torch.randn(6, 4),)


def loss(model: nn.Module, x: torch.Tensor) -> Any:
    return model(x).square().mean() * getattr(model, "beta", 1.0)


def refuse(*_: Any) -> bool:
    """Fail, because what this replaces is slow."""
    raise AssertionError


def test_an_unchanged_program_is_checked_by_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attribute of a weight is read, and no dictionary is compared by its entries."""
    model, optimizer, batch = net()
    step = mpcompile.compile(model, loss, optimizer, batch, backend="interpreter")
    step(*batch)
    monkeypatch.setattr(Guard, "_attributes_hold", refuse)
    monkeypatch.setattr(Guard, "_holds_by_value", refuse)
    monkeypatch.setattr(GuardedValues, "hold_by_value", refuse)
    for _ in range(5):
        step(*batch)
        optimizer.zero_grad()


@pytest.mark.parametrize("words", [True, False])
def test_a_number_that_is_an_input_leaves_the_check_quick(
    words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the dictionary that holds it is compared by its entries."""
    if not words:
        monkeypatch.setattr(tensor_words, "layout_of_tensors", lambda: None)
        monkeypatch.setattr(dictionary_words, "_place", lambda: None)
    model, optimizer, batch = net()
    model.beta = 1.0
    step = mpcompile.compile(model, loss, optimizer, batch, backend="interpreter")
    for beta in (0.9, 0.8, 0.7, 0.6):
        model.beta = beta
        step(*batch)
    monkeypatch.setattr(Guard, "_holds_by_value", refuse)
    for beta in (0.5, 0.4):
        model.beta = beta
        with torch.no_grad():
            expected = loss(model, *batch)
        assert torch.allclose(step(*batch), expected, rtol=1e-2)


@pytest.mark.parametrize("words", [True, False])
def test_writes_reach_the_16_bit_copies(words: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write in place that PyTorch counts is read at the next call, after each of several."""
    if not words:
        monkeypatch.setattr(tensor_words, "layout_of_tensors", lambda: None)
    model, optimizer, batch = net()
    step = mpcompile.compile(model, loss, optimizer, batch, backend="interpreter")
    step(*batch)
    for factor in (0.5, 3.0, 0.25):
        with torch.no_grad():
            model[3].weight.mul_(factor)
            expected = loss(model, *batch)
        assert torch.allclose(step(*batch), expected, rtol=1e-2)


def test_a_check_after_a_change_notices_the_next_one() -> None:
    """What was taken up is what is watched from then on."""
    model, optimizer, batch = net()
    step = mpcompile.compile(model, loss, optimizer, batch, backend="interpreter")
    frozen = model[0].bias
    for _ in range(3):
        step(*batch)
        step(*batch)
        assert step._guard.holds()
        frozen.requires_grad_(not frozen.requires_grad)
        assert not step._guard.holds()
        step(*batch)
        assert step._guard.holds()
        model[3].weight.data = model[3].weight.detach().clone()
        assert not step._guard.holds()
    step(*batch)
    assert step._guard.holds()
