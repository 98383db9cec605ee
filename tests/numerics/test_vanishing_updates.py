"""Updates that FP16 weights would lose, against FP16 addition and a plain training loop."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from nets.small_models import workload
from torch import nn

from mpcompile.errors import BadInput
from mpcompile.numerics.vanishing_updates import Vanishing, vanishes, vanishing_updates
from mpcompile.program.capture import capture
from mpcompile.program.workload import Workload

halves = some.floats(width=16, allow_nan=False, allow_infinity=False)


def stays(weight: float, update: float) -> bool:
    """Whether FP16 addition leaves a weight as it is; with NumPy, one rounding."""
    with np.errstate(over="ignore"):
        return bool(np.float64(weight) + np.float64(update) == weight) or bool(
            np.float16(np.float64(weight) + np.float64(update)) == np.float16(weight)
        )


def found(weight: float, update: float) -> bool:
    w = torch.tensor([weight], dtype=torch.float16)
    return bool(vanishes(w, torch.tensor([update], dtype=torch.float64)))


@given(halves, some.floats(-(2.0**17), 2.0**17, width=32))
def test_an_update_vanishes_if_fp16_addition_leaves_the_weight(
    weight: float, update: float
) -> None:
    assert found(weight, update) == stays(weight, update)


@given(
    halves, some.sampled_from([0.25, 0.5, 1.0]), some.sampled_from([-1, 1]), some.integers(-1, 1)
)
def test_ties_and_their_neighbours(weight: float, part: float, sign: int, nudge: int) -> None:
    ulp = float(np.spacing(np.abs(np.float16(weight)))) if abs(weight) < 65504 else 32.0
    update = np.float64(sign * part * ulp) * (1 + nudge * 2.0**-20)
    assert found(weight, float(update)) == stays(weight, float(update))


@pytest.mark.parametrize(
    ("weight", "update", "expected"),
    [
        (1.0, 2.0**-11, True),  # a tie, and the last digit of 1 is even
        (1.0 + 2.0**-10, 2.0**-11, False),  # a tie, and the last digit is odd
        (1.0, -(2.0**-11), False),  # below 1 numbers lie twice as close
        (1.0, -(2.0**-12), True),
        (-1.0, 2.0**-11, False),
        (2.0**-14, -(2.0**-25), True),  # subnormal numbers lie no closer
        (0.0, 2.0**-25, True),
        (0.0, 2.0**-24, False),
        (65504.0, 15.0, True),
        (65504.0, 16.0, False),  # becomes infinite
        (float("inf"), 1e4, True),
        (1.0, float("nan"), False),
    ],
)
def test_edges(weight: float, update: float, expected: bool) -> None:
    assert found(weight, update) is expected


def by_hand(work: Workload, steps: int) -> dict[str, list[int]]:
    """Train a copy in plain PyTorch and count with FP16 addition."""
    assert work.loss is not None
    assert work.data is not None
    model, optimizer = copy.deepcopy((work.model, work.optimizer))
    assert optimizer is not None
    counts: dict[str, list[int]] = {}
    data = [batch for _ in range(steps) for batch in work.data][:steps]
    for batch in data:
        optimizer.zero_grad()
        work.loss(model, *batch).backward()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer.step()
        for name, value in model.named_parameters():
            if not value.requires_grad:
                continue
            w = before[name].numpy().astype(np.float16)
            update = value.detach().numpy().astype(np.float64) - before[name].numpy()
            after = (w.astype(np.float64) + update).astype(np.float16)
            row = counts.setdefault(name, [0, 0, 0])
            row[0] += update.size
            row[1] += int((update == 0).sum())
            row[2] += int(((update != 0) & (after == w)).sum())
    return counts


def small(kind: str = "adamw", frozen: bool = False) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    if frozen:
        model[0].requires_grad_(False)
    groups = [
        {"params": list(model[0].parameters()) + list(model[3].parameters()), "lr": 1e-4},
        {"params": list(model[1].parameters()), "lr": 1e-1},
    ]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    )
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(3)]

    def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), target)

    return Workload(model, data[0], loss, optimizer, data)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("frozen", [False, True])
def test_counts_are_those_of_plain_pytorch(kind: str, frozen: bool) -> None:
    work = small(kind, frozen)
    expected = by_hand(work, 5)
    rows = vanishing_updates(work, capture(work), 5)
    got = {row.parameter: [row.count, row.zeros, row.vanished] for row in rows}
    assert got.keys() == expected.keys()
    for name, row in got.items():
        # Backward may sum in another order, so a number at a border may fall on its other side.
        assert row == pytest.approx(expected[name], abs=2), name
    assert any(row.vanished for row in rows)


def test_an_optimizer_continues_from_its_state_and_nothing_changes() -> None:
    work = small()
    assert work.optimizer is not None
    assert work.loss is not None
    schedule = torch.optim.lr_scheduler.StepLR(work.optimizer, 1)
    for batch in work.data or ():
        work.loss(work.model, *batch).backward()
        work.optimizer.step()
        schedule.step()
    expected = by_hand(work, 3)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = copy.deepcopy((work.model.state_dict(), work.optimizer.state_dict()))
    gradients = [p.grad.clone() for p in work.model.parameters() if p.grad is not None]
    generators = (random.getstate(), str(np.random.get_state()), torch.get_rng_state())
    rows = vanishing_updates(work, capture(work), 3)
    assert {r.parameter: r.vanished for r in rows} == pytest.approx(
        {name: row[2] for name, row in expected.items()}, abs=2
    )
    after = (work.model.state_dict(), work.optimizer.state_dict())
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    for gradient, parameter in zip(gradients, work.model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad)
        assert parameter.requires_grad
    assert random.getstate() == generators[0]
    assert str(np.random.get_state()) == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])


def test_tied_weights_count_once() -> None:
    work = workload("gpt", "cpu")
    rows = vanishing_updates(work, capture(work), 1)
    names = [row.parameter for row in rows]
    assert len(names) == len(set(names)) == len(list(work.model.parameters()))


def test_an_all_zero_gradient_gives_updates_of_zero() -> None:
    work = small("sgd")

    def nothing(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 0 * model(x).sum()  # type: ignore[no-any-return]

    flat = replace(work, loss=nothing)
    rows = vanishing_updates(flat, capture(flat), 2)
    assert all(row.zeros == row.count and row.share == 0.0 for row in rows)


def test_a_workload_that_cannot_be_trained_is_refused() -> None:
    work = small()
    forward = capture(work)
    with pytest.raises(BadInput, match="at least 1"):
        vanishing_updates(work, forward, 0)
    with pytest.raises(BadInput, match="gave no batch"):
        vanishing_updates(replace(work, data=[]), forward)
    with pytest.raises(BadInput, match="no loss"):
        vanishing_updates(Workload(work.model, work.batch[:1]), forward)
    assert Vanishing("w", 4, 4, 0).share == 0.0
