"""Changes between two calls of a step: what is said, refused, kept and freed."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import changing
from programs.changes import (
    attribute,
    buffer_replaced,
    dropout,
    evaluation,
    frozen,
    global_number,
    parameter_data,
    state_cleared,
)
from programs.changing import (
    Change,
    Net,
    Options,
    Side,
    adamw,
    batch,
    check_same,
    compiled,
    eager,
    sides,
    train_both,
)
from torch import nn

import mpcompile
from mpcompile import BadInput


@pytest.fixture(autouse=True)
def _temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "TEMPERATURE", 1.0)


@pytest.mark.parametrize("change", [evaluation, attribute, frozen])
def test_a_change_and_clipping(change: Change) -> None:
    """A norm over arenas is summed in another order, so the weights are close."""
    mine, theirs = sides(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    step = compiled(mine, max_grad_norm=0.5)
    for call in range(12):
        if call % 4 == 0:
            for side in (mine, theirs):
                change(side, call // 4)
        torch.manual_seed(call)
        value = theirs.loss(theirs.model, *batch(call))
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.5)
        theirs.optimizer.step()
        theirs.model.zero_grad(set_to_none=True)
        torch.manual_seed(call)
        torch.testing.assert_close(step(*batch(call)), value.detach(), rtol=1e-5, atol=1e-6)
    for name, held in theirs.model.state_dict().items():
        torch.testing.assert_close(mine.model.state_dict()[name], held, rtol=1e-4, atol=1e-5)


def test_parameters_that_come_to_the_optimizer_later() -> None:
    def added(side: Side, turn: int) -> None:
        if turn == 1:
            made = {"params": list(side.model.two.parameters()), "lr": 0.02}
            side.optimizer.add_param_group(made)

    mine, theirs = sides(trained="two")
    for _ in train_both(compiled(mine), mine, theirs, added, calls=12):
        pass


def test_a_checkpoint_of_a_step_with_frozen_weights(tmp_path: Path) -> None:
    mine, theirs = sides()
    step = compiled(mine)
    for call in train_both(step, mine, theirs, frozen, calls=6):
        if call == 5:
            step.save(tmp_path)
    again, _ = sides()
    fresh = compiled(again)
    again.model.two.requires_grad_(False)
    fresh.load(tmp_path)
    assert (fresh.taken, fresh.skipped) == (6, 0)
    for _ in train_both(fresh, again, theirs, frozen, calls=6, first=6):
        pass


def test_scale_and_counters_are_those_of_before() -> None:
    mine, _ = sides()
    step = compiled(mine, policy=None, loss_scale=mpcompile.LossScale(initial=2.0**10, interval=2))
    for call in range(3):
        step(*batch(call))
    applied, scaler = step.applied, step.scaler_state()
    mine.model.two.requires_grad_(False)
    before = mine.model.two.weight.clone()
    step(*batch(3))
    assert (step.taken, step.applied is applied) == (4, True)
    assert step.scaler_state()["scale"] == 2 * scaler["scale"]
    assert torch.equal(mine.model.two.weight, before)
    assert "two.weight" not in step.gradients(*batch(0))


SAID: list[tuple[Change, str]] = [
    (evaluation, "model.training is False, was True, and 5 more"),
    (dropout, "model.drop.p is 0.3, was 0.1"),
    (attribute, "model.gain is 0.7, was 0.5"),
    (global_number, "the global TEMPERATURE is 2.0, was 1.0"),
]


@pytest.mark.parametrize(("change", "what"), SAID)
def test_what_was_there_before_has_its_graph_already(
    change: Change, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = sides()
    step = compiled(mine)
    with caplog.at_level(logging.INFO, "mpcompile"):
        for _ in train_both(step, mine, theirs, change, calls=20):
            pass
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"{what}: compiled graph 2 of the step"


def test_a_step_made_again_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mine, _ = sides()
    step = compiled(mine)
    mine.model.two.bias.requires_grad_(False)
    with caplog.at_level(logging.INFO, "mpcompile"):
        step(*batch(0))
        step(*batch(1))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("model.two.bias.requires_grad is False, was True")
    assert said.endswith("the step is made again, on the same state")


def test_memory_of_an_earlier_layout_is_freed() -> None:
    mine, _ = sides()
    step = compiled(mine)
    step(*batch(0))
    arena = weakref.ref(step._state["arena0.master"].untyped_storage())
    mine.model.two.requires_grad_(False)
    step(*batch(1))
    gc.collect()
    assert arena() is None


def test_few_situations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpcompile.train.batch_graphs.MOST_SITUATIONS", 2)
    mine, theirs = sides()
    step = compiled(mine)

    def another(side: Side, turn: int) -> None:
        side.model.drop.p = (0.1, 0.2, 0.3)[turn % 3]

    for _ in train_both(step, mine, theirs, another, calls=16):
        pass
    assert len(step._graphs) == 2


def test_evaluation_reads_the_program_as_it_is_now() -> None:
    mine, _ = sides()
    step, x = compiled(mine), batch(0)[0]

    def same() -> bool:
        return torch.equal(step.forward(x), copy.deepcopy(mine.model).eval()(x))

    assert same()
    mine.model.gain = 2.0
    assert same()
    mine.model.shift = torch.ones(16)
    assert same()
    mine.model.head.bias.data = torch.ones(4)
    assert same()
    step(*batch(0))
    assert same()


def test_gradients_and_graphs_are_those_of_the_program_as_it_is_now() -> None:
    mine, theirs = sides()
    step = compiled(mine)
    for side in (mine, theirs):
        side.model.eval()
        side.loss.beta = 0.3
    torch.autograd.backward(theirs.loss(theirs.model, *batch(0)))
    found = step.gradients(*batch(0))
    for name, value in theirs.model.named_parameters():
        assert value.grad is not None
        assert torch.equal(found[name], value.grad), name
    assert step.graph_of(*batch(0)) is not step.step


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_trains_inside_no_grad_too(mode: Callable[[], Any]) -> None:
    mine, theirs = sides()
    step = compiled(mine)
    for call in range(6):
        for side in (mine, theirs):
            frozen(side, call // 2)
        torch.manual_seed(call)
        expected = eager(theirs, batch(call), 1, last=True)
        torch.manual_seed(call)
        with mode():
            assert torch.equal(step(*batch(call)), expected)
        check_same(mine, theirs)


def test_other_settings_of_torch() -> None:
    mine, theirs = sides()
    step = compiled(mine)
    for call in range(6):
        torch.manual_seed(call)
        with torch.autocast("cpu", torch.bfloat16, enabled=call in (2, 3)):
            expected = theirs.loss(theirs.model, *batch(call))
        torch.autograd.backward(expected)
        theirs.optimizer.step()
        theirs.model.zero_grad(set_to_none=True)
        torch.manual_seed(call)
        with torch.autocast("cpu", torch.bfloat16, enabled=call in (2, 3)):
            found = step(*batch(call))
        torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-3)


def refused(step: mpcompile.TrainStep, match: str) -> None:
    """Check that a call is refused twice with the same words, and changes nothing."""
    for _ in range(2):
        with pytest.raises(BadInput, match=match):
            step(*batch(0))


def test_what_cannot_be_taken_up_is_refused_and_can_be_undone() -> None:
    mine, theirs = sides()
    step = compiled(mine)
    torch.manual_seed(0)
    step(*batch(0))
    eager_seed(theirs, 0)
    model, optimizer = mine.model, mine.optimizer

    model.requires_grad_(False)
    refused(step, "trains no parameter")
    model.requires_grad_(True)

    data = model.two.weight.data
    model.two.weight.data = data.double()
    refused(step, r"parameters were moved .*two\.weight is float64\[16, 16\].*model\.to")
    model.two.weight.data = data

    kept = model.two.bias.data
    model.two.bias.data = model.one.bias.data
    refused(step, r"two\.bias has got the memory of one\.bias")
    model.two.bias.data = kept

    before = model.head.bias
    model.head.bias = nn.Parameter(torch.zeros(4))
    refused(step, r"the loss does not read parameter 7 of .* of shape \[4\]")
    model.head.bias = before

    handle = optimizer.register_step_pre_hook(lambda *_: None)
    refused(step, "step pre-hook .*max_grad_norm")
    handle.remove()

    torch.manual_seed(1)
    step(*batch(1))
    eager_seed(theirs, 1)
    check_same(mine, theirs)


def eager_seed(side: Side, seed: int) -> None:
    torch.manual_seed(seed)
    eager(side, batch(seed), 1, last=True)


def test_freezing_inside_an_update_of_several_calls_is_refused() -> None:
    mine, _ = sides()
    step = compiled(mine, accumulate=2)
    step(*batch(0))
    mine.model.two.requires_grad_(False)
    refused(step, r"two\.weight\.requires_grad is False.*1 of 2 micro-batches")
    mine.model.two.requires_grad_(True)
    step(*batch(1))
    assert step.taken == 1


def test_an_optimizer_with_a_hook_before_its_step_is_refused_at_once() -> None:
    mine, _ = sides()
    mine.optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(BadInput, match="step pre-hook"):
        compiled(mine)


def test_a_hook_after_the_update_runs_for_applied_updates_only() -> None:
    mine, _ = sides()
    seen: list[Any] = []
    mine.optimizer.register_step_post_hook(lambda *given: seen.append(given))
    step = compiled(mine, policy=None, loss_scale=mpcompile.LossScale())
    step(*batch(0))
    x, y = batch(1)
    step(x * float("nan"), y)
    assert seen == [(mine.optimizer, (mine.optimizer,), {})] * step.taken
    assert step.skipped >= 1


def test_an_equal_value_is_no_change(caplog: pytest.LogCaptureFixture) -> None:
    mine, _ = sides()
    step = compiled(mine)
    with caplog.at_level(logging.INFO, "mpcompile"):
        for call in range(3):
            mine.model.train()
            mine.model.gain = float("0.5")
            mine.model.options = Options()
            mine.model.count = call  # type: ignore[assignment]
            changing.TEMPERATURE = float("1.0")
            step(*batch(call))
    assert not caplog.records


def test_a_number_and_an_equal_one_of_another_type_differ() -> None:
    mine, _ = sides()
    mine.model.options.weight = 1
    step = compiled(mine)
    step(*batch(0))
    mine.model.options.weight = True
    step(*batch(0))
    assert len(step._graphs) == 2


def test_a_program_that_stops_reading_a_weight() -> None:
    """In eager PyTorch it has no gradient, so it gets no update."""

    class Optional(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.norm(self.one(x)))
            if self.gain > 0:
                hidden = hidden + self.gain * self.two(hidden)
            result: torch.Tensor = self.head(hidden)
            return result

    torch.manual_seed(0)
    model = Optional()
    mine = Side(model, changing.Loss(), adamw(model.parameters()))
    peer = copy.deepcopy(model)
    theirs = Side(peer, changing.Loss(), adamw(peer.parameters()))

    def off(side: Side, turn: int) -> None:
        side.model.gain = 0.0 if turn == 1 else 0.5

    for _ in train_both(compiled(mine), mine, theirs, off, calls=12):
        pass


def test_a_policy_of_16_bits_follows_too() -> None:
    mine, theirs = sides()
    step = compiled(mine, policy=None, loss_scale=mpcompile.LossScale(initial=2.0**8))
    for change in (evaluation, attribute, frozen, parameter_data, buffer_replaced, state_cleared):
        for turn in range(3):
            for side in (mine, theirs):
                change(side, turn)
            torch.manual_seed(turn)
            theirs.model.load_state_dict(mine.model.state_dict())
            expected = theirs.loss(theirs.model, *batch(turn)).detach()
            torch.manual_seed(turn)
            torch.testing.assert_close(step(*batch(turn)), expected, rtol=1e-2, atol=1e-2)


def test_a_number_with_many_values_is_said_once() -> None:
    mine, theirs = sides()
    step = compiled(mine, verify=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(12):
            for side in (mine, theirs):
                side.model.drop.p = 0.01 * call  # cannot be an input
            torch.manual_seed(call)
            expected = eager(theirs, batch(call), 1, last=True)
            torch.manual_seed(call)
            assert torch.equal(step(*batch(call)), expected)
    [said] = [w for w in caught if issubclass(w.category, mpcompile.ChangingNumber)]
    assert str(said.message).startswith("model.drop.p has had 8 other values")
    assert said.filename == __file__
    check_same(mine, theirs)


def test_a_number_in_a_buffer_is_an_input() -> None:
    mine, _ = sides()
    step = compiled(mine)
    for call in range(3):
        mine.model.shift.fill_(0.1 * call)
        step(*batch(call))
    assert len(step._graphs) == 1
