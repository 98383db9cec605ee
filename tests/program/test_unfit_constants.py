"""Constants that FP16 cannot hold are found with no data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile.pipeline import transform
from mpcompile.precision import Precision
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices, Transformed


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
    return transform(
        Workload(model, batch, loss, torch.optim.SGD(model.parameters())),
        Choices(policy=policy or mpcompile.Policy()),
    )


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


class Between(nn.Module):
    """Something between two linears, with a buffer."""

    def __init__(
        self, what: Callable[..., torch.Tensor], buffer: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.enter, self.leave, self.what = nn.Linear(8, 8), nn.Linear(8, 3), what
        self.register_buffer("held", torch.zeros(1) if buffer is None else buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.leave(self.what(self.enter(x), self.held))
        return result


def first_loss(model: nn.Module, policy: mpcompile.Policy | None = None) -> float:
    torch.manual_seed(0)
    batch = (torch.randn(4, 8), torch.randint(0, 3, (4,)))
    step = mpcompile.compile(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.0),
        batch,
        policy=policy,
        loss_scale=mpcompile.LossScale.static(1.0),
        backend="interpreter",
    )
    return float(step(*batch))


def stored(model: nn.Module) -> dict[str, str]:
    return {d.op: d.stores.short for d in transformed(model).plan.decisions}


LARGE: dict[str, Callable[..., torch.Tensor]] = {
    "added": lambda h, _: h + 1e5,
    "filled": lambda h, _: torch.where(h > 0, h, torch.full((8,), 1e5)),
    "a lifted tensor": lambda h, _: h + torch.tensor(1e5),
    "padded": lambda h, _: nn.functional.pad(h, (1, 1), value=1e9)[:, 2:],
    "clamped up": lambda h, _: h.clamp(min=1e5),
    "through views": lambda h, _: (h + 1e5).view(2, 2, 8).transpose(0, 1).reshape(4, 8),
    "an additive mask": lambda h, _: h + (1.0 - (h > 0).float()) * -1e9,
    "a buffer": lambda h, held: h + (held + 1e5),
    "replaced infinities": lambda h, _: torch.nan_to_num(h / 0, posinf=1e9, neginf=0.0),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_matmul_reads_infinities_for_what_was_large(name: str) -> None:
    torch.manual_seed(0)
    model = Between(LARGE[name])
    found = transformed(model)
    assert found.unfit
    assert "becomes " in found.plan.decision("linear_1").reason
    assert found.plan.decision("linear_1").stores is Precision.FP32
    assert found.plan.decision("linear").stores is Precision.FP16
    expected = first_loss(model, mpcompile.FULL_PRECISION)
    assert first_loss(model) == pytest.approx(expected, rel=0.02)


ENDS: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": lambda h, _: torch.softmax(h.masked_fill(h > 0, -1e9), -1),
    "softmax by hand": lambda h, _: (m := h.masked_fill(h > 0, -1e9).exp()) / m.sum(-1, True),
    "max": lambda h, _: h.masked_fill(h > 2, -1e9).amax(0, keepdim=True).expand(4, 8),
    "tanh": lambda h, _: torch.tanh(h + 1e5),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_matmul_behind_what_ends_it_stays_16_bits(name: str) -> None:
    model = Between(ENDS[name])
    assert transformed(model).unfit
    assert stored(model)["linear_1"] == "f16"


def attend(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(h[None], h[None], h[None], attn_mask=mask)[0]


MASKS: dict[str, Callable[..., torch.Tensor]] = {
    "filled": lambda h, _: attend(h, torch.zeros(4, 4).masked_fill(h[:, :4] > 0, -1e9)),
    "multiplied": lambda h, _: attend(h, (1 - (h[:, :4] > 0).float()) * torch.finfo().min),
    "a buffer": lambda h, held: attend(h, held.triu(1)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_attention_is_named_and_attention_stays_16_bits(name: str) -> None:
    torch.manual_seed(0)
    model = Between(MASKS[name], torch.full((4, 4), -1e9))
    assert "becomes -inf in FP16: use float('-inf')" in str(transformed(model).unfit[0])
    assert stored(model)["scaled_dot_product_attention"] == "f16"
    expected = first_loss(model, mpcompile.FULL_PRECISION)
    assert first_loss(model) == pytest.approx(expected, rel=0.02)


def test_what_attention_mixes_is_no_mask() -> None:
    plan = transformed(Between(lambda h, _: attend(h - 1e9, torch.zeros(4, 4)))).plan
    assert plan.decision("scaled_dot_product_attention").stores is Precision.FP32


@pytest.mark.parametrize(
    "what",
    [
        lambda h, held: h * 0 / ((h * 0).abs() + held),
        lambda h, _: h * 0 / ((h * 0).abs() + torch.tensor(1e-8)),
    ],
)
def test_a_tiny_number_in_a_tensor_is_found_and_still_guards(
    what: Callable[..., torch.Tensor],
) -> None:
    model = Between(what, torch.tensor([1e-8, 0.0, -torch.inf])[:1])
    (found,) = transformed(model).unfit
    assert "holds 1e-08, which becomes 0" in str(found)
    assert math.isfinite(first_loss(model))


def test_the_sign_of_a_buffer_is_kept() -> None:
    model = Between(lambda h, held: h + held, torch.tensor([1.0, -1e9, torch.inf, 0] * 2))
    assert "holds -1e+09, which becomes -inf" in str(transformed(model).unfit[0])


@pytest.mark.parametrize(
    "what",
    [
        lambda h, _: h.clamp(-1e9, 1e9),
        lambda h, _: h.clamp_max(1e9),
        lambda h, _: nn.functional.hardtanh(h, -1e9, 1e9),
        lambda h, _: torch.where(h < 1e9, h, h * 2),
        lambda h, _: nn.functional.layer_norm(h, (8,), eps=1e-12),
        lambda h, _: torch.nn.functional.softplus(h, threshold=1e6),
        lambda h, _: torch.addmm(h[0], h, h.T @ h, alpha=1e-9),
    ],
)
def test_numbers_that_do_no_harm_are_not_named(what: Callable[..., torch.Tensor]) -> None:
    assert transformed(Between(what)).unfit == ()


def test_a_comparison_with_a_tiny_number_is_named() -> None:
    (found,) = transformed(Between(lambda h, _: torch.where(h.abs() < 1e-8, 1.0, h))).unfit
    assert (found.kind, found.value) == ("lt", 1e-8)


def test_constants_inside_a_branch_are_found() -> None:
    def what(h: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.cond(h.sum() > 0, lambda z: z + 1e5, lambda z: z - 1, (h,))
        return result

    (found,) = transformed(Between(what)).unfit
    assert found.op.endswith(".add")
    assert found.value == 1e5


def test_a_constant_that_the_user_wants_in_16_bits_still_runs() -> None:
    model = Between(lambda h, _: torch.where(h > 0, h, torch.full((8,), -1e9)) * 1e-9)
    assert isinstance(first_loss(model, mpcompile.Policy(half=("where",))), float)


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


def test_rewrite_finds_numbers_in_tensors_too() -> None:
    model = Between(lambda h, held: h * torch.tensor(1e6) + held, torch.tensor([-1e9]))
    program = torch.export.export(model, (torch.randn(4, 8),), strict=False)
    types = {n.name: n.meta["val"].dtype for n in mpcompile.rewrite(program).graph.nodes if n.users}
    assert types["linear"] is torch.float16
    assert types["mul"] is types["add"] is types["linear_1"] is torch.float32
