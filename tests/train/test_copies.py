"""Copies and pickles of a step, and of the model and optimizer that it holds."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from programs.changing import Side, batch, check_same, compiled, eager, sides

from mpcompile import BadInput


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [copy.deepcopy, pickled, saved]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_model_and_optimizer_trains_on_as_the_step_would(
    way: Callable[[Any], Any],
) -> None:
    mine, _ = sides()
    step = compiled(mine)
    for call in range(3):
        step(*batch(call))
    model, optimizer = way((mine.model, mine.optimizer))
    theirs = Side(model, mine.loss, optimizer)
    check_same(mine, theirs)
    for call in range(3, 9):
        torch.manual_seed(call)
        expected = eager(theirs, batch(call), 1, last=True)
        torch.manual_seed(call)
        assert torch.equal(step(*batch(call)), expected)
    check_same(mine, theirs)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_shares_no_memory_with_the_step(way: Callable[[Any], Any]) -> None:
    mine, _ = sides()
    step = compiled(mine)
    copied = way(mine.model)
    before = {name: value.clone() for name, value in copied.state_dict().items()}
    step(*batch(0))
    for name, value in copied.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("way", [*WAYS, copy.copy])
def test_a_copy_of_the_step_is_refused_in_one_sentence(way: Callable[[Any], Any]) -> None:
    mine, _ = sides()
    step = compiled(mine)
    for held in (step, {"step": step}):
        if way is copy.copy and held is not step:
            continue
        with pytest.raises(BadInput, match=r"belongs to one model and optimizer; .* step\.save"):
            way(held)
    step(*batch(0))
    assert step.taken == 1
