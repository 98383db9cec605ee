"""Measuring ranges, and planning by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flow import random_flow
from torch import nn

import mpcompile
from mpcompile.dataflow import Dataflow
from mpcompile.errors import BadInput
from mpcompile.fingerprint import graph_of
from mpcompile.growth import contain_growth
from mpcompile.measured import MeasuredOverflow, apply_ranges
from mpcompile.pipeline import transform
from mpcompile.planner import make_plan
from mpcompile.precision import Precision
from mpcompile.ranges import HIGHEST, LOWEST, Range, Ranges, read_ranges
from mpcompile.workload import Workload

numbers = st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(numbers)
def test_a_range_counts_what_numpy_counts(values: list[float]) -> None:
    found = Range.of(torch.tensor(values))
    size = np.abs(np.array(values, dtype=np.float32)).astype(np.float64)
    finite = size[np.isfinite(size)]
    assert found.count == len(values)
    assert found.zeros == (size == 0).sum()
    assert found.below_normal == ((size > 0) & (size < 2.0**-14)).sum()
    assert found.below_smallest == ((size > 0) & (size < 2.0**-24)).sum()
    assert found.largest == (finite.max() if len(finite) == len(size) else math.inf)
    exponents = [min(max(math.frexp(v)[1] - 1, LOWEST), HIGHEST) for v in finite if v > 0]
    assert found.exponents == tuple(exponents.count(e) for e in range(LOWEST, HIGHEST + 1))


@settings(max_examples=50, deadline=None)
@given(numbers, numbers)
def test_two_batches_measure_what_one_of_both_would(a: list[float], b: list[float]) -> None:
    both = Range.of(torch.tensor(a)).joined(Range.of(torch.tensor(b)))
    assert both == Range.of(torch.tensor(a + b))


def test_an_empty_tensor_has_a_range() -> None:
    assert Range.of(torch.empty(0)).largest == 0


class Tall(nn.Module):
    """Its hidden values pass 65504 and come down again."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        with torch.no_grad():
            self.rise.weight.mul_(1e6)
            self.fall.weight.mul_(1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fall(torch.relu(self.rise(self.norm(x))))
        return hidden


def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(nn.functional.dropout(model(x), 0.1), target)


def workload(model: nn.Module | None = None, batches: int = 3) -> Workload:
    torch.manual_seed(0)
    model = model or Tall()
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    return Workload(model, data[0], loss, optimizer, data)


def test_calibration_measures_forward_and_backward_over_the_batches() -> None:
    model = Tall()
    work = workload(model)
    found = mpcompile.calibrate(work)
    assert found.batches == 3
    assert work.data is not None
    with torch.no_grad():
        hidden = [model.rise(x) for x, _ in work.data]
    assert found.values["linear"].largest == max(float(h.abs().max()) for h in hidden)
    assert found.values["linear"].count == 3 * 4 * 16
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = mpcompile.calibrate(work, batches=1)
    assert torch.equal(torch.get_rng_state(), state)
    loss(model, *work.batch).backward()
    assert model.rise.weight.grad is not None
    expected = float(model.rise.weight.grad.abs().max())
    assert again.gradients["p_model_rise_weight"].largest == expected


def test_each_batch_has_its_own_gradients() -> None:
    model = Square()
    work = workload(model)
    found = mpcompile.calibrate(replace(work, loss=plain))
    assert work.data is not None
    largest, small = [], 0
    for batch in work.data:
        model.zero_grad()
        plain(model, *batch).backward()
        assert model.first.weight.grad is not None
        largest.append(float(model.first.weight.grad.abs().max()))
        small += int((model.first.weight.grad.abs() < 2.0**-14).sum())
    gradient = found.gradients["p_model_first_weight"]
    assert gradient.largest == max(largest)
    assert gradient.below_normal + gradient.zeros == small


def plain(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), target)


def test_calibration_leaves_the_model_as_it_was() -> None:
    work = workload(Tall(norm=True))
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    mpcompile.calibrate(work)
    assert all(torch.equal(v, before[name]) for name, v in work.model.state_dict().items())
    assert all(p.grad is None for p in work.model.parameters())


def test_what_overflows_is_kept_in_fp32_and_the_reason_says_what_was_measured() -> None:
    work = workload()
    ranges = mpcompile.calibrate(work)
    plan = transform(work, ranges=ranges).plan
    linear = plan.decision("linear")
    assert linear.stores is Precision.FP32
    size = ranges.values["linear"].largest
    assert f"linear reached {size:.3g} in 3 batches, beyond 1.638e+04" in linear.reason
    assert plan.decision("linear_1").stores is Precision.FP32  # it would read what overflows


def test_with_ranges_the_step_trains_where_fp16_alone_skips() -> None:
    blind, seeing = workload(), workload()
    ranges = mpcompile.calibrate(seeing)

    def skipped(work: Workload, given: Ranges | None) -> int:
        assert work.optimizer is not None and work.data is not None
        step = mpcompile.compile(work.model, loss, work.optimizer, work.batch, ranges=given)
        for batch in work.data:
            step(*batch)
        return step.skipped

    assert skipped(blind, None) == 3
    assert skipped(seeing, ranges) == 0


def test_an_override_stands_with_a_warning() -> None:
    work = workload()
    ranges = mpcompile.calibrate(work)
    with pytest.warns(MeasuredOverflow, match="linear reached"):
        plan = transform(work, mpcompile.Policy(half=("module:rise",)), ranges=ranges).plan
    assert plan.decision("linear").stores is Precision.FP16


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.last((1 + torch.sigmoid(self.first(x))).exp() * 2)
        return hidden


def test_a_harmless_result_is_released_where_that_is_asked_for() -> None:
    work = workload(Square())
    ranges = mpcompile.calibrate(work)
    kept = transform(work, ranges=ranges).plan
    assert kept.decision("exp").stores is kept.decision("mul").stores is Precision.FP32
    free = transform(work, ranges=replace(ranges, release=True)).plan
    assert free.decision("exp").stores is free.decision("mul").stores is Precision.FP16
    assert "it reached only" in free.decision("exp").reason


def test_ranges_of_another_program_are_refused() -> None:
    ranges = mpcompile.calibrate(workload())
    with pytest.raises(BadInput, match="measured on another program"):
        transform(workload(Square()), ranges=ranges)


def measured(flow: Dataflow, size: Callable[[str], float]) -> Ranges:
    values = {
        t.id: Range(size(t.id), t.elements, 0, 0, 0, (0,) * (HIGHEST - LOWEST + 1))
        for t in flow.tensors
    }
    return Ranges(graph_of(flow).fingerprint, 1, values)


@settings(max_examples=1000, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_large_tensor_is_ever_stored_or_cast_to_16_bits(chooser: object) -> None:
    flow = random_flow(chooser, 10)  # type: ignore[arg-type]
    large = {t.id for t in flow.tensors if chooser.random() < 0.2}  # type: ignore[attr-defined]
    ranges = measured(flow, lambda name: 1e5 if name in large else 1.0)
    plan = make_plan(apply_ranges(flow, ranges, Precision.FP16), Precision.FP16)
    for name in large:
        assert plan.storage[name] == (Precision.FP32,), name
        assert not [cast for cast in plan.casts if cast.tensor == name and cast.to.bytes == 2]


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(list(Precision)[:2]))
def test_ranges_within_the_margin_change_nothing(chooser: object, precision: Precision) -> None:
    flow = random_flow(chooser, 10)  # type: ignore[arg-type]
    ranges = measured(flow, lambda _: 16000.0)
    assert apply_ranges(flow, ranges, precision) == flow
    assert contain_growth(flow, Precision.BF16) == flow


def test_ranges_survive_json(tmp_path: Path) -> None:
    ranges = mpcompile.calibrate(workload(Tall(norm=True)))
    ranges.values["x"] = Range(math.inf, 1, 0, 0, 0, (0,) * 61)  # type: ignore[index]
    (tmp_path / "r.json").write_text(ranges.to_json())
    assert read_ranges(tmp_path / "r.json") == ranges


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"values": {"x": {"largest": -1}}},
        {"batches": "many"},
        {"margin_bits": 99},
        {"unknown": 1},
        {"values": []},
    ],
)
def test_hostile_ranges_are_refused(change: dict[str, object]) -> None:
    document = json.loads(mpcompile.calibrate(workload()).to_json())
    with pytest.raises(BadInput, match="these are no ranges"):
        Ranges.from_json(json.dumps({**document, **change}))
    with pytest.raises(BadInput):
        Ranges.from_json("{")
