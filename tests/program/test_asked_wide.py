"""What a program itself asks to compute in FP32 stays in FP32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpcompile
from mpcompile import Level, Policy, Precision
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices


class Between(nn.Module):
    def __init__(self, what: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.what = nn.Linear(8, 8), nn.Linear(8, 4), what

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.what(self.first(x)))
        return result


def loss(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = model(x).square().mean()
    return result


def stored(what: nn.Module, policy: Policy | None = None) -> dict[str, str]:
    model = Between(what)
    workload = Workload(model, (torch.randn(16, 8),), loss, torch.optim.SGD(model.parameters()))
    plan = transform(workload, Choices(policy=policy or Policy())).plan
    return {decision.op: decision.stores.short for decision in plan.decisions}


class ByFloat(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        wide = h.float()
        return torch.relu(wide * 2).view(16, 8) + 1


class ByTo(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h.to(torch.float32) * 2).view(16, 8) + 1


class ByDtype(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h.to(dtype=torch.float) * 2).view(16, 8) + 1


@pytest.mark.parametrize("what", [ByFloat(), ByTo(), ByDtype()])
@pytest.mark.parametrize("level", [Level.PAPER, Level.CAREFUL, Level.TENSOR_CORES_ONLY])
def test_arithmetic_behind_it_stays_until_a_tensor_core_op(what: nn.Module, level: Level) -> None:
    found = stored(what, Policy(level))
    assert [found[op] for op in ("linear", "mul", "relu", "view", "add", "linear_1")] == [
        "f16", "f32", "f32", "f32", "f32", "f16"
    ]  # fmt: skip


class AndBack(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        wide = h.float() * 2
        h = wide.to(h.dtype)  # back from float32
        return torch.relu(h + 1) * 3


def test_a_cast_to_the_dtype_of_another_tensor_ends_it() -> None:
    found = stored(AndBack())
    assert (found["mul"], found["add"], found["mul_1"]) == ("f32", "f16", "f16")


class Plain(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h * 2).view(16, 8) + 1


def test_without_a_wish_it_is_16_bits() -> None:
    found = stored(Plain())
    assert {found[op] for op in ("mul", "relu", "view", "add")} == {"f16"}


def test_an_override_counts_more() -> None:
    assert stored(ByFloat(), Policy(half=("relu",)))["relu"] == Precision.FP16.short


class Off(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.autocast("cpu", enabled=False):
            result: Tensor = self.inner(h).tanh()
        return result


def test_a_region_without_autocast_is_fp32_as_a_whole() -> None:
    torch.manual_seed(0)
    model = Off()
    batch = torch.randn(16, 8)
    with torch.no_grad():
        narrow = model.first(batch.half().float())
    step = mpcompile.compile(
        model,
        lambda model, x: (loss(model, x), model(x)),
        torch.optim.SGD(model.parameters(), lr=0.0),
        (batch,),
        loss_scale=mpcompile.LossScale.none(),
    )
    _, result = step(batch)
    exact = model.inner(narrow).tanh()
    assert 2**-14 < (result - exact).abs().max() / exact.abs().max() < 2**-9
    assert len({float(value) for value in result.flatten()}) > 120  # not rounded to FP16
