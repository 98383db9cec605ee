"""Constants that FP16 cannot hold are found with no data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile.pipeline import Transformed, transform
from mpcompile.precision import Precision
from mpcompile.workload import Workload


class Masked(nn.Module):
    """Attention scores with a mask, and a division guarded by an epsilon."""

    def __init__(self, fill: float = -1e9, epsilon: float = 1e-8, offset: float = 0.0) -> None:
        super().__init__()
        self.fill, self.epsilon = fill, epsilon
        self.enter, self.leave = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("offset", torch.full((8,), offset))
        self.register_buffer("mask", torch.ones(4, 4).triu(1) > 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(x)
        scores = (hidden @ hidden.transpose(0, 1)).masked_fill(self.mask, self.fill)
        hidden = torch.softmax(scores, -1) @ (hidden + self.offset)
        guarded = hidden.abs() + self.epsilon
        result: torch.Tensor = self.leave(hidden / guarded)
        return result


def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), target)


def transformed(model: nn.Module, policy: mpcompile.Policy | None = None) -> Transformed:
    torch.manual_seed(0)
    batch = (torch.randn(4, 8), torch.randint(0, 3, (4,)))
    return transform(Workload(model, batch, loss, torch.optim.SGD(model.parameters())), policy)


def test_a_mask_and_an_epsilon_are_found_with_place_and_fix() -> None:
    found = transformed(Masked())
    mask, epsilon = found.unfit
    assert (mask.kind, mask.value, epsilon.kind, epsilon.value) == (
        "masked_fill",
        -1e9,
        "add",
        1e-8,
    )
    assert str(mask) == (
        "the constant -1e+09 becomes -inf in FP16: use float('-inf') if it masks, or "
        "torch.finfo(torch.float16).min"
    )
    assert "becomes 0 in FP16" in str(epsilon)
    assert mask.where.file == __file__
    assert mask.where.line and epsilon.where.line > mask.where.line


def test_their_ops_and_what_follows_stay_in_fp32() -> None:
    plan = transformed(Masked()).plan
    for op in ("masked_fill", "add_1", "div"):
        assert plan.decision(op).stores is Precision.FP32, op
    assert "becomes -inf" in plan.decision("masked_fill").reason
    assert "it follows add_1" in plan.decision("div").reason
    assert plan.decision("softmax").stores is Precision.FP16


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        (Masked(fill=float("-inf"), epsilon=1e-6), None),
        (Masked(fill=-60000.0, epsilon=2.0**-24), None),
        (Masked(), mpcompile.Policy(precision=Precision.BF16)),
        (Masked(), mpcompile.FULL_PRECISION),
    ],
)
def test_what_fits_is_not_named(model: nn.Module, policy: mpcompile.Policy | None) -> None:
    assert transformed(model, policy).unfit == ()


def test_a_buffer_that_does_not_fit_is_found() -> None:
    (found,) = transformed(Masked(fill=-1e4, epsilon=1e-3, offset=1e6)).unfit
    assert "the buffer b_model_offset holds 1e+06, which becomes inf in FP16" in str(found)


def test_an_override_stands() -> None:
    plan = transformed(Masked(), mpcompile.Policy(free=("masked_fill",))).plan
    assert plan.decision("masked_fill").stores is Precision.FP16


class Bounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x).clamp(-1e9, 1e9)
        return result


def test_a_bound_that_no_fp16_number_passes_is_no_danger() -> None:
    assert transformed(Bounds()).unfit == ()


def test_the_guard_still_guards() -> None:
    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x * 0)
            return y / (y.abs() + 1e-8)

    model = Zero()
    step = mpcompile.compile(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.0),
        (torch.randn(4, 8), torch.randint(0, 3, (4,))),
        loss_scale=mpcompile.LossScale.static(1.0),
    )
    assert torch.isfinite(step(torch.randn(4, 8), torch.randint(0, 3, (4,))))


def test_rewrite_finds_them_too() -> None:
    program = torch.export.export(Masked(), (torch.randn(4, 8),), strict=False)
    rewritten = mpcompile.rewrite(program)
    fill = next(n for n in rewritten.graph.nodes if n.name == "masked_fill")
    assert fill.meta["val"].dtype is torch.float32
