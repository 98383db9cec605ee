"""Python numbers that change from call to call become inputs of the graph, bit for bit as eager."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import annealing
from programs.annealing import (
    Change,
    Loss,
    Vae,
    annealed,
    batch,
    beta,
    both,
    by_epoch,
    caught,
    decided,
    dropped,
    epoch,
    everywhere,
    in_global,
    in_range,
    masked,
    mixed,
    parts,
    powered,
    rate,
    rate_and_beta,
    reversed_,
    scaled,
    side,
    trained,
    weighted,
    with_exp,
    without_draws,
)

import mpcompile
from mpcompile import FULL_PRECISION, TrainStep
from mpcompile.step.slots import Role


@pytest.fixture(autouse=True)
def _global_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealing, "WEIGHT", annealing.WEIGHT)


@pytest.mark.parametrize(
    ("loss", "change"),
    [
        (annealed, beta),
        (annealed, scaled),
        (mixed, beta),
        (by_epoch, epoch),
        (by_epoch, both),
        (everywhere, beta),
        (weighted, in_global),
    ],
)
def test_a_number_becomes_an_input(loss: Loss, change: Change) -> None:
    """Two values make a graph each; the third graph is for all values."""
    assert len(trained(loss, change)._graphs) == 3


def test_numbers_in_closures_and_containers() -> None:
    weights: dict[str, Any] = {"divergence": 0.1, "kind": "mean"}
    factors: list[Any] = [1.0, "a", 0.5]
    temperature = 1.0

    def loss(model: Vae, x: torch.Tensor) -> torch.Tensor:
        reconstruction, divergence = parts(model, x)
        result: torch.Tensor = divergence * weights["divergence"] * factors[2]
        return reconstruction / temperature + result

    def change(_: Vae, turn: int) -> None:
        nonlocal temperature
        temperature = 1 / (turn + 1)
        weights["divergence"] = turn / 37
        factors[2] = turn / 11

    assert len(trained(loss, change)._graphs) == 3


def test_what_changes_beside_a_number_is_seen() -> None:
    """In the same dictionary, list and object."""
    options, factors = {"weight": 0.1, "sign": 1.0}, [0.1, 1.0]

    def loss(model: Vae, x: torch.Tensor) -> torch.Tensor:
        reconstruction, divergence = parts(model, x)
        factor = options["weight"] * options["sign"] * factors[0] * factors[1]
        return reconstruction + factor * divergence

    def change(_: Vae, turn: int) -> None:
        options["weight"] = factors[0] = turn / 37
        options["sign"] = 1.0 if turn < 8 else -1.0
        factors[1] = 1.0 if turn < 12 else 2.0

    assert len(trained(loss, change)._graphs) == 5


def test_a_number_of_another_type_is_another_program() -> None:
    def change(model: Vae, turn: int) -> None:
        model.beta = turn + 1 if turn > 9 else 0.1 * turn

    assert len(trained(mixed, change)._graphs) == 4


def test_the_object_that_holds_the_number_may_be_replaced() -> None:
    @dataclass
    class Options:
        weight: float = 0.1

    held = Options()

    def loss(model: Vae, x: torch.Tensor) -> torch.Tensor:
        reconstruction, divergence = parts(model, x)
        return reconstruction + held.weight * divergence

    def change(_: Vae, turn: int) -> None:
        nonlocal held
        held = Options(turn / 37)

    assert len(trained(loss, change)._graphs) == 3


def test_a_number_that_decides_is_compared_before_each_call() -> None:
    """One graph below epoch 10 and one after it."""
    assert len(trained(decided, epoch)._graphs) == 4


@pytest.mark.parametrize(
    ("loss", "change", "why"),
    [
        (dropped, rate, "model.drop.p cannot be an input (it is an argument of dropout)"),
        (dropped, rate_and_beta, "model.drop.p cannot be an input (it is an argument of dropout)"),
        (with_exp, beta, "model.beta cannot be an input (it is used by __float__)"),
        (in_range, epoch, "model.epoch cannot be an input (it is used by __index__)"),
        (powered, beta, "model.beta cannot be an input (it is an argument of pow)"),
        (masked, beta, "model.beta cannot be an input (it is used beside a tensor of torch.bool)"),
        (caught, beta, "model.beta cannot be an input (it is used by __float__)"),
        (reversed_, beta, "model.beta cannot be an input"),
    ],
)
def test_a_number_that_cannot_be_an_input(
    loss: Loss, change: Change, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each value makes one graph, as before, and it is tried once."""
    with caplog.at_level(logging.INFO, "mpcompile"):
        step = trained(loss, change, calls=6)
    assert len(step._graphs) == 6
    said = [record.getMessage() for record in caplog.records if "cannot" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(why)


def test_a_loop_that_a_number_ends_has_few_graphs() -> None:
    def loss(model: Vae, x: torch.Tensor) -> torch.Tensor:
        turn = 0
        while turn < model.epoch:
            x, turn = 0.9 * x, turn + 1
        return parts(model, x)[0]

    step = trained(loss, epoch, calls=14)
    assert not step._guard.numbers.inputs


def test_a_graph_that_does_not_do_what_the_program_does_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The proof of the first batch decides, also with ``verify=False``."""

    def loss(model: Vae, x: torch.Tensor) -> torch.Tensor:
        return parts(model, x)[0] * model.beta * (2 if type(model.beta) is float else 3)

    with caplog.at_level(logging.INFO, "mpcompile"):
        assert len(trained(loss, beta, calls=5, verify=False)._graphs) == 5
    assert "the captured graph does not do what the program does" in caplog.text


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mpcompile"), warnings.catch_warnings():
        warnings.simplefilter("error", mpcompile.ChangingNumber)
        trained(annealed, beta, calls=12)
    assert [record.getMessage() for record in caplog.records] == [
        "model.beta is 0.12702702702702703, was 0.1: compiled graph 2 of the step",
        "model.beta is an input from now on, was 0.12702702702702703: compiled graph 3 of the step",
    ]


def test_accumulation() -> None:
    assert len(trained(mixed, beta, accumulate=2)._graphs) == 3


def test_an_open_batch_size() -> None:
    assert len(trained(mixed, beta, dynamic=True, sizes=lambda t: 4 + t % 5)._graphs) == 3


def test_other_shapes_have_graphs_with_the_same_inputs() -> None:
    """The shape of odd turns comes first when the number is no input yet."""
    assert len(trained(mixed, beta, sizes=lambda t: 4 + t % 2)._graphs) == 4


def test_a_frozen_weight_makes_the_step_again_with_the_input() -> None:
    def change(model: Vae, turn: int) -> None:
        beta(model, turn)
        model.decoder.weight.requires_grad_(turn < 8)

    step = trained(annealed, change, calls=12)
    assert len(step._graphs) == 1
    assert [slot.name for slot in step.step.slots.values() if slot.role is Role.NUMBER]


def test_evaluation_reads_the_present_number() -> None:
    step = trained(annealed, scaled, calls=5)
    model: Any = step._model
    for value in (0.25, 0.75):
        model.beta = value
        torch.manual_seed(1)
        made = step.forward(batch(1))[0]
        torch.manual_seed(1)
        torch.testing.assert_close(made, model.eval()(batch(1))[0])
        model.train()


@pytest.mark.parametrize("policy", [FULL_PRECISION, mpcompile.Policy()])
def test_inductor(policy: mpcompile.Policy) -> None:
    mine = side(without_draws)
    step = mpcompile.compile(
        mine.model, without_draws, mine.optimizer, (batch(0),), policy=policy, backend="inductor"
    )
    for turn in range(5):
        beta(mine.model, turn)
        without_draws(mine.model, batch(turn)).backward()
        expected = {name: p.grad for name, p in mine.model.named_parameters()}
        mine.optimizer.zero_grad()
        near = 1e-5 if policy is FULL_PRECISION else 2e-2
        for name, value in step.gradients(batch(turn)).items():
            torch.testing.assert_close(value, expected[name], rtol=near, atol=near)
        step(batch(turn))
    assert len(step._graphs) == 3


@pytest.mark.parametrize("loss", [annealed, mixed, everywhere])
def test_16_bits_are_those_of_a_graph_with_the_constant(loss: Loss) -> None:
    """The op that reads the number runs and stores as it did with the constant."""
    mine = side(loss)
    mine.model.scaled = True
    policy = mpcompile.Policy()
    step = mpcompile.compile(mine.model, loss, mine.optimizer, (batch(0),), policy=policy)
    for turn in range(4):
        beta(mine.model, turn)
        step(batch(turn))
    peer = side(loss)
    peer.model.scaled = True
    peer.model.load_state_dict(mine.model.state_dict())
    beta(peer.model, 7)
    beta(mine.model, 7)
    other = mpcompile.compile(peer.model, loss, peer.optimizer, (batch(0),), policy=policy)
    other.load_scaler_state(step.scaler_state())
    torch.manual_seed(3)
    made = step.gradients(batch(3))
    torch.manual_seed(3)
    expected = other.gradients(batch(3))
    assert len(step._graphs) == 3
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, rtol=1e-3, atol=1e-6)
    assert narrow(step) == narrow(other) > 0


def narrow(step: TrainStep) -> int:
    """Count the tensors of a gradient graph in 16 bits."""
    values = [node.meta.get("val") for node in step.graph_of(batch(3)).gradient.graph.nodes]
    return sum(isinstance(v, torch.Tensor) and v.dtype is torch.float16 for v in values)


def test_a_checkpoint_holds_no_number(tmp_path: Path) -> None:
    step = trained(annealed, beta, calls=5)
    saved = step.save(tmp_path)
    assert not any("number" in name for name in step._held().tensors)
    fresh = side(annealed)
    other = mpcompile.compile(
        fresh.model, annealed, fresh.optimizer, (batch(0),), policy=FULL_PRECISION
    )
    other.load(saved)
    model: Any = step._model
    model.beta = fresh.model.beta = 0.7
    torch.manual_seed(5)
    first = step(batch(5))
    torch.manual_seed(5)
    assert torch.equal(other(batch(5)), first)
