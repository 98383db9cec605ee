"""What may change between two calls of a step: each kind of change, beside eager PyTorch."""

from __future__ import annotations

import pytest
from programs import changing
from programs.changes import (
    a_hook_after_the_update,
    a_hook_of_a_module,
    a_hook_of_a_parameter,
    a_hook_that_goes,
    another_object,
    attribute,
    attribute_of_object,
    buffer_data,
    buffer_replaced,
    buffer_written,
    dropout,
    element,
    evaluation,
    frozen,
    global_number,
    groups_replaced,
    number_of_loss,
    one_norm,
    parameter_data,
    parameter_replaced,
    parameter_written,
    state_cleared,
    state_loaded,
    state_of_one_cleared,
    statistic_replaced,
    submodule,
    unfrozen,
)
from programs.changing import (
    Change,
    compiled,
    dampened,
    sides,
    train_both,
)


@pytest.fixture(autouse=True)
def _temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "TEMPERATURE", 1.0)


PROGRAM = [evaluation, one_norm, dropout, attribute, attribute_of_object, another_object, element,
           number_of_loss, global_number, submodule, a_hook_of_a_module, a_hook_that_goes,
           a_hook_of_a_parameter]  # fmt: skip
VALUES = [buffer_written, parameter_written, parameter_data, a_hook_after_the_update,
          state_cleared, state_loaded]  # fmt: skip
LAYOUT = [buffer_replaced, statistic_replaced, buffer_data, parameter_replaced, frozen, unfrozen,
          state_of_one_cleared, groups_replaced]  # fmt: skip


@pytest.mark.parametrize("change", [*PROGRAM, *VALUES, *LAYOUT])
def test_a_change_between_two_calls_is_taken_up_as_in_eager_pytorch(change: Change) -> None:
    mine, theirs = sides()
    for _ in train_both(compiled(mine), mine, theirs, change, calls=12):
        pass


@pytest.mark.parametrize("change", [evaluation, attribute, parameter_data, frozen, unfrozen])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_change_and_other_batch_shapes(change: Change, dynamic: bool) -> None:
    mine, theirs = sides()
    step = compiled(mine, dynamic=dynamic)
    for _ in train_both(step, mine, theirs, change, calls=12, counts=(12, 7, 5)):
        pass
    assert not dynamic or len(step._graphs) <= 2


@pytest.mark.parametrize("change", [evaluation, attribute, frozen, unfrozen, statistic_replaced])
def test_a_change_between_two_updates_of_several_calls(change: Change) -> None:
    mine, theirs = sides()
    step = compiled(mine, accumulate=2)
    for _ in train_both(step, mine, theirs, change, calls=12, accumulate=2):
        pass


@pytest.mark.parametrize("change", [evaluation, attribute, attribute_of_object])
def test_a_change_inside_an_update_of_several_calls(change: Change) -> None:
    mine, theirs = sides()
    step = compiled(mine, accumulate=8)
    for _ in train_both(step, mine, theirs, change, calls=16, accumulate=8):
        pass


@pytest.mark.parametrize("change", [frozen, unfrozen, state_cleared, parameter_replaced])
def test_a_change_and_an_optimizer_whose_first_step_differs(change: Change) -> None:
    mine, theirs = sides(dampened)
    for _ in train_both(compiled(mine), mine, theirs, change, calls=12):
        pass
