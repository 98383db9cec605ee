"""What rounding one tensor does to what reads it: measured, and kept in FP32 above the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile.numerics.narrowing import LOST, distance
from mpcompile.onnx.measure import calibrate as calibrate_onnx
from mpcompile.onnx.rewrite import rewrite
from mpcompile.pipeline import transform
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Policy
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices

DEFAULT = Policy()


class Between(nn.Module):
    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.op = nn.Linear(16, 32), nn.Linear(32, 8), op

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.leave(self.op(self.enter(x)))
        return result


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]


def workload(op: Callable[[Tensor], Tensor]) -> Workload:
    torch.manual_seed(0)
    model = Between(op)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Workload(model, (torch.randn(64, 16),), loss, optimizer)


def offset_norm(h: Tensor) -> Tensor:
    return nn.functional.layer_norm(h + 50, (32,))


def planned(work: Workload, ranges: Ranges, policy: Policy = DEFAULT) -> Plan:
    return transform(work, Choices(policy=policy, ranges=ranges)).plan


def test_the_error_is_that_of_the_reader_run_on_the_rounded_tensor() -> None:
    work = workload(offset_norm)
    held = mpcompile.calibrate(work).narrowings["add"]
    model = work.model
    assert isinstance(model, Between)
    with torch.no_grad():
        moved = model.enter(work.batch[0]) + 50
        exact = nn.functional.layer_norm(moved, (32,))
        for name, dtype in {"f16": torch.float16, "bf16": torch.bfloat16}.items():
            result = nn.functional.layer_norm(moved.to(dtype).float(), (32,))
            error = float((result - exact).abs().max() / exact.abs().max())
            assert held[name].reader == "layer_norm"
            assert held[name].error == pytest.approx(error, rel=1e-3)
            assert held[name].gradient > 2.0**-9


def test_a_tensor_above_the_budget_is_fp32_and_the_reason_has_the_measurement() -> None:
    work = workload(offset_norm)
    ranges = mpcompile.calibrate(work)
    plan = planned(work, ranges)
    assert plan.decision("add").stores is Precision.FP32
    assert "rounding add alone to f16 changes" in plan.decision("add").reason
    assert "layer_norm by 0.0" in plan.decision("add").reason
    assert plan.decision("linear").stores is Precision.FP16  # the sum alone needs its digits
    loose = planned(work, replace(ranges, precision_budget=1.0))
    assert loose.decision("add").stores is Precision.FP16


def test_a_layer_behind_harmless_arithmetic_is_measured_too() -> None:
    work = workload(lambda h: torch.sin(100 * h))
    policy = Policy(mpcompile.Level.TENSOR_CORES_ONLY)
    ranges = mpcompile.calibrate(work)
    assert ranges.narrowings["linear"]["f16"].reader == "sin"
    assert planned(work, ranges, policy).decision("linear").stores is Precision.FP32
    half = Policy(mpcompile.Level.TENSOR_CORES_ONLY, half=("node:linear",))
    assert planned(work, ranges, half).decision("linear").stores is Precision.FP16


def test_a_path_through_a_detach_has_no_gradient_to_measure() -> None:
    def shifted(h: Tensor) -> Tensor:
        return h - (h * 2.0).detach()

    held = mpcompile.calibrate(workload(shifted)).narrowings
    assert held["mul"]["f16"].gradient == 0.0
    assert held["mul"]["f16"].error > 0.0


def test_a_measurement_below_the_budget_lifts_no_demand() -> None:
    work = workload(lambda h: torch.sin(1e-3 * h))
    ranges = mpcompile.calibrate(work)
    assert ranges.narrowings["mul"]["f16"].worst < 2.0**-10
    assert planned(work, ranges).decision("mul").stores is Precision.FP32


def test_bf16_has_a_budget_of_its_own_roundings() -> None:
    work = workload(lambda h: nn.functional.layer_norm(h, (32,)))
    ranges = mpcompile.calibrate(work)
    assert ranges.narrowings["linear"]["bf16"].worst > 2.0**-9
    plan = planned(work, ranges, Policy(precision=Precision.BF16))
    assert plan.decision("linear").stores is Precision.BF16


@pytest.mark.parametrize(
    ("result", "exact", "error"),
    [
        (torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0]), 0.1),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5]), 0.25),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 1.0]), 0.0),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([2.0, 1.0]), LOST),
        (torch.tensor([0.5]), torch.tensor([0.0]), LOST),
        (torch.tensor([1.0]), torch.tensor([torch.nan]), 0.0),
        (torch.zeros(0), torch.zeros(0), 0.0),
    ],
)
def test_distance(result: Tensor, exact: Tensor, error: float) -> None:
    assert distance(result, exact) == pytest.approx(error)


def test_an_onnx_model_is_measured_as_a_program_is() -> None:
    torch.manual_seed(0)
    model, x = Between(offset_norm), torch.randn(64, 16)
    exported = torch.onnx.export(model.eval(), (x,), dynamo=True, verbose=False)
    assert exported is not None
    proto: onnx.ModelProto = exported.model_proto
    batch = {proto.graph.input[0].name: np.asarray(x)}
    ranges = calibrate_onnx(proto, [batch])
    wrong = {name for name, held in ranges.narrowings.items() if held["f16"].worst > 2.0**-8}
    assert wrong
    plan = rewrite(proto, ranges=ranges).plan
    assert all(plan.storage[name] == (Precision.FP32,) for name in wrong)
