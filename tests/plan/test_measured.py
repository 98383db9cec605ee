"""Planning by measured ranges."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs.graphs import convolution
from programs.random_flow import best, least, random_flow
from programs.random_plans import choosers
from programs.tall import Tall, loss, workload
from torch import nn

import mpcompile
from mpcompile.errors import BadInput
from mpcompile.numerics.calibration import range_of
from mpcompile.pipeline import transform
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.growth import contain_growth
from mpcompile.plan.measured import MeasuredOverflow, apply_ranges, overruled
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import Level, Policy
from mpcompile.plan.ranges import Range, Ranges, tensors_of
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices, Transformed

flows = choosers.map(lambda chooser: (chooser, random_flow(chooser, 10)))
many = settings(max_examples=1000, deadline=None)


@cache
def range_of_many(elements: int, size: float) -> Range:
    return range_of(torch.full((elements,), size))


def measured(flow: Dataflow, size: Callable[[str], float]) -> Ranges:
    values = {t.id: range_of_many(t.elements, size(t.id)) for t in flow.tensors}
    return Ranges(tensors_of(flow), 1, values)


def with_large_tensors(chooser: random.Random, flow: Dataflow) -> tuple[Dataflow, set[str], Ranges]:
    """Let some tensors be measured to be too large for FP16."""
    large = {tensor.id for tensor in flow.tensors if chooser.random() < 0.2}
    return flow, large, measured(flow, lambda name: 1e5 if name in large else 1.0)


@many
@given(flows)
def test_no_large_tensor_is_ever_stored_or_cast_to_16_bits(
    drawn: tuple[random.Random, Dataflow],
) -> None:
    flow, large, ranges = with_large_tensors(*drawn)
    plan = make_plan(apply_ranges(flow, ranges, Precision.FP16), Precision.FP16)
    for name in large:
        assert plan.storage[name] == (Precision.FP32,), name
        assert not [cast for cast in plan.casts if cast.tensor == name and cast.to.bytes == 2]
    assert overruled(plan, ranges) == ()


@many
@given(flows)
def test_only_ops_at_large_tensors_change_and_only_to_fp32(
    drawn: tuple[random.Random, Dataflow],
) -> None:
    flow, large, ranges = with_large_tensors(*drawn)
    fitted = apply_ranges(flow, ranges, Precision.FP16)
    assert fitted.tensors == flow.tensors
    for before, after in zip(flow.ops, fitted.ops, strict=True):
        if before != after:
            assert after == replace(before, wish=Wish.FULL, reason=after.reason)
            assert large & {*before.reads, *before.writes}


@settings(max_examples=200, deadline=None)
@given(flows)
def test_the_plan_is_still_the_cheapest(drawn: tuple[random.Random, Dataflow]) -> None:
    chooser, flow = drawn
    ranges = measured(flow, lambda _: chooser.choice((1.0, 1e5)))
    fitted = apply_ranges(flow, ranges, Precision.FP16)
    assert best(fitted) == least(fitted)


@settings(max_examples=200, deadline=None)
@given(flows, st.sampled_from(list(Precision)))
def test_ranges_within_the_margin_change_nothing(
    drawn: tuple[random.Random, Dataflow], precision: Precision
) -> None:
    _, flow = drawn
    assert apply_ranges(flow, measured(flow, lambda _: 16376.0), precision) == flow


@settings(max_examples=200, deadline=None)
@given(flows, st.sampled_from([Precision.BF16, Precision.FP32]))
def test_other_precisions_have_the_range_of_fp32(
    drawn: tuple[random.Random, Dataflow], precision: Precision
) -> None:
    _, flow = drawn
    assert apply_ranges(flow, measured(flow, lambda _: 1e30), precision) == flow
    assert contain_growth(flow, precision) == flow


@pytest.mark.parametrize(
    ("bits", "size", "stored"), [(2, 16400.0, "f32"), (1, 16400.0, "f16"), (0, 65504.0, "f16")]
)
def test_the_margin_is_in_bits(bits: int, size: float, stored: str) -> None:
    work = workload()
    ranges = mpcompile.calibrate(work)
    values = {
        name: range_of(torch.full((held.count,), 1.0)) for name, held in ranges.values.items()
    }
    values["linear"] = range_of(torch.full((ranges.values["linear"].count,), size))
    plan = transform(work, Choices(ranges=replace(ranges, values=values, margin_bits=bits))).plan
    assert plan.decision("linear").stores.short == stored


def test_what_overflows_is_kept_in_fp32_and_the_reason_says_what_was_measured() -> None:
    work = workload()
    ranges = mpcompile.calibrate(work)
    plan = transform(work, Choices(ranges=ranges)).plan
    linear = plan.decision("linear")
    assert linear.stores is Precision.FP32
    size = ranges.values["linear"].largest
    assert f"linear reached {size:.3g} in 3 batches, beyond 16376" in linear.reason
    assert plan.decision("linear_1").stores is Precision.FP32  # it would read what overflows


def test_with_ranges_the_step_trains_as_fp32_does_where_fp16_alone_skips() -> None:
    def run(policy: Policy | None, seeing: bool) -> tuple[list[float], int]:
        work = workload()
        ranges = mpcompile.calibrate(work) if seeing else None
        assert work.optimizer is not None and work.data is not None
        step = mpcompile.compile(
            work.model, loss, work.optimizer, work.batch, policy=policy, ranges=ranges
        )
        torch.manual_seed(3)
        return [float(step(*batch)) for batch in work.data], step.skipped

    plain, _ = run(mpcompile.FULL_PRECISION, False)
    seen, skipped = run(None, True)
    assert run(None, False)[1] == 3
    assert skipped == 0
    assert seen == pytest.approx(plain, rel=1e-2)


@pytest.mark.filterwarnings("ignore::mpcompile.plan.measured.MeasuredOverflow")
def test_an_override_or_a_given_plan_stands_with_a_warning_for_each_tensor() -> None:
    work = workload()
    ranges = mpcompile.calibrate(work)
    with pytest.warns(MeasuredOverflow, match="linear is in FP16 as you asked, but linear reached"):
        plan = transform(work, Choices(policy=Policy(half=("module:rise",)), ranges=ranges)).plan
    assert plan.decision("linear").stores is Precision.FP16
    with pytest.warns(MeasuredOverflow, match="relu is in FP16 as you asked"):
        transform(work, Choices(plan=transform(work).plan, ranges=ranges))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform(work, Choices(ranges=ranges))


def test_ranges_hold_whatever_the_policy_says_of_a_norm_with_statistics() -> None:
    work = convolution()
    ranges = mpcompile.calibrate(work)
    assert transform(work, Choices(policy=Policy(half=("norm layer",)), ranges=ranges))


class Attending(nn.Module):
    """Masks with negative infinity, as an argument of attention and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(x)
        mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
        hidden = nn.functional.scaled_dot_product_attention(
            hidden[None], hidden[None], hidden[None], attn_mask=mask
        )[0]
        hidden = torch.softmax(hidden @ hidden.T + mask, -1) @ hidden
        result: torch.Tensor = self.leave(hidden)
        return result


def test_an_infinite_mask_is_no_overflow() -> None:
    work = workload(Attending())
    ranges = mpcompile.calibrate(work)
    assert ranges.values["masked_fill"].largest == torch.inf
    assert transform(work, Choices(ranges=ranges)).plan.decisions == transform(work).plan.decisions


class Then(nn.Module):
    """Something between two linears."""

    def __init__(self, what: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.what = nn.Linear(8, 16), nn.Linear(16, 3), what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.what(self.first(x)))
        return result


def exponential(h: torch.Tensor) -> torch.Tensor:
    return (1 + torch.sigmoid(h)).exp() * 2


def tiny_root_mean_square(h: torch.Tensor) -> torch.Tensor:
    h = h * 1e-4
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def both(what: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Transformed, Transformed]:
    """Return the program as ranges alone keep it, and with release."""
    work = workload(Then(what))
    ranges = mpcompile.calibrate(work)
    released = transform(work, Choices(ranges=replace(ranges, release=True)))
    return transform(work, Choices(ranges=ranges)), released


def test_a_harmless_result_is_released_where_that_is_asked_for() -> None:
    kept, released = (side.plan for side in both(exponential))
    assert kept.decision("exp").stores is kept.decision("mul").stores is Precision.FP32
    assert released.decision("exp").stores is released.decision("mul").stores is Precision.FP16
    assert "it stayed between 2^-14 and" in released.decision("exp").reason


def test_what_lies_below_the_normal_numbers_is_not_released_nor_what_follows() -> None:
    _, released = both(tiny_root_mean_square)
    for op in ("pow_1", "mean", "add"):
        assert released.plan.decision(op).stores is Precision.FP32, op
    assert released.plan.decision("rsqrt").stores is Precision.FP16


def test_losses_solvers_and_single_numbers_are_never_released() -> None:
    def what(h: torch.Tensor) -> torch.Tensor:
        solved = torch.linalg.inv(h[:, :4] + 9 * torch.eye(4)) @ h
        result: torch.Tensor = (nn.functional.logsigmoid(h) + solved) * (1 + h.square()).sum()
        return result

    _, released = both(what)
    for op in ("log_sigmoid", "linalg_inv", "sum_1", "cross_entropy_loss"):
        assert released.plan.decision(op).stores is Precision.FP32, op


@pytest.mark.parametrize("level", [Level.CAREFUL, Level.TENSOR_CORES_ONLY])
def test_a_level_that_keeps_more_in_fp32_does_not_go_with_release(level: Level) -> None:
    work = workload(Then(exponential))
    ranges = replace(mpcompile.calibrate(work), release=True)
    with pytest.raises(BadInput, match=f"the level {level.value}"):
        transform(work, Choices(policy=Policy(level), ranges=ranges))


def test_ranges_of_another_program_or_batch_shape_are_refused() -> None:
    ranges = mpcompile.calibrate(workload())
    with pytest.raises(BadInput, match="measured on another program"):
        transform(workload(Then(exponential)), Choices(ranges=ranges))
    model = Tall()
    batch = (torch.randn(5, 8), torch.zeros(5, dtype=torch.long))
    other = Workload(model, batch, loss, torch.optim.SGD(model.parameters()))
    with pytest.raises(BadInput, match="batch shapes"):
        transform(other, Choices(ranges=ranges))
