"""Lint finds constants, masks and sums that 16 bits cannot hold, and nothing in their fixes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs.lint_programs import between, findings, line_of
from torch import Tensor, nn

from mpcompile import Policy
from mpcompile.lint.finding import Severity
from mpcompile.precision import Precision

ERROR, WARNING, NOTE = Severity


class Scores(nn.Module):
    """Attention with a mask, written out."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.enter = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = self.enter(x)
        hidden = (q @ q.T).masked_fill(x @ x.T > 0, self.fill)  # a mask
        return torch.softmax(hidden, -1) @ q


class Outer(nn.Module):
    """A module with a name around the tested function."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.attention = inner
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.attention(x))
        return result


def test_a_mask_is_found_at_its_node_module_and_line() -> None:
    (found,) = findings(Outer(Scores(-1e9)), torch.randn(8, 8))
    assert (found.rule, found.severity) == ("MP103", NOTE)
    assert (found.op, found.where.module) == ("masked_fill", "attention")
    assert found.node == "masked_fill"
    assert found.where.file == __file__
    assert found.where.line == line_of(__file__, "a mask")
    assert "the logits stay in FP32 from masked_fill to the softmax" in found.message


@pytest.mark.parametrize("fill", [float("-inf"), -3e4])
def test_a_mask_that_fits_is_not_a_finding(fill: float) -> None:
    assert findings(Outer(Scores(fill)), torch.randn(8, 8)) == []


def test_a_mask_in_16_bits_by_an_override_is_a_warning() -> None:
    policy = Policy(half=("masked_fill",))
    (found,) = findings(Scores(-1e9), torch.randn(8, 8), policy=policy)
    assert (found.rule, found.severity) == ("MP103", WARNING)
    assert "becomes NaN" in found.message


def attend(h: Tensor, fill: float) -> Tensor:
    mask = torch.zeros(4, 4).masked_fill(h[:, :4] > 0, fill)
    return nn.functional.scaled_dot_product_attention(h[None], h[None], h[None], mask)[0]


def test_a_mask_that_attention_reads_in_16_bits_is_a_warning() -> None:
    (found,) = between(lambda h, _: attend(h, -1e9))
    assert (found.rule, found.severity, found.op) == ("MP103", WARNING, "masked_fill")
    assert "becomes -inf where attention reads it" in found.message
    assert between(lambda h, _: attend(h, float("-inf"))) == []


def test_bf16_and_fp32_hold_every_mask() -> None:
    for policy in (Policy(precision=Precision.BF16), Policy(precision=Precision.FP32)):
        assert findings(Scores(-1e9), torch.randn(8, 8), policy=policy) == []


class Added(nn.Module):
    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        return h + 1e5  # a constant


class Guarded(nn.Module):
    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        return h / (h.abs() + 1e-8)  # an epsilon


class Gram(nn.Module):
    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        return h.T @ h  # a Gram matrix


def test_a_constant_that_costs_a_tensor_core_op_is_a_warning() -> None:
    (found,) = between(Added())
    assert (found.rule, found.severity, found.op) == ("MP101", WARNING, "add")
    assert found.where.line == line_of(__file__, "a constant")
    assert found.where.module == "what"
    assert found.detail == "1 Tensor-Core op"
    assert between(lambda h, _: h + 6e4) == []


def test_a_large_buffer_is_named() -> None:
    (found,) = between(lambda h, held: torch.tanh(h * held), held=torch.full((8,), 1e6))
    assert (found.rule, found.severity) == ("MP101", NOTE)
    assert "the buffer held holds 1e+06, which does not fit FP16, so mul stays" in found.message


def test_an_epsilon_is_found_and_a_larger_one_is_not() -> None:
    (found,) = between(Guarded())
    assert (found.rule, found.severity, found.op) == ("MP102", NOTE, "add")
    assert found.where.line == line_of(__file__, "an epsilon")
    assert between(lambda h, _: h / (h.abs() + 1e-6)) == []
    (found,) = between(Guarded(), policy=Policy(half=("add",)))
    assert (found.rule, found.severity) == ("MP102", ERROR)
    assert "becomes 0 in FP16" in found.message


@pytest.mark.parametrize(
    "what",
    [
        lambda h, _: h / (h.square().mean(-1, keepdim=True) + 1e-8).sqrt(),
        lambda h, _: h / (h.norm(dim=-1, keepdim=True) + 1e-12),
        lambda h, _: h.clamp(-1e9, 1e9),
        lambda h, _: nn.functional.layer_norm(h, (8,), eps=1e-12),
        lambda h, _: torch.where(h < 1e9, h, -h),
    ],
)
def test_constants_in_fp32_or_without_effect_are_not_findings(what: Callable[..., Tensor]) -> None:
    assert between(what) == []


def test_a_number_that_the_user_keeps_in_fp32_is_not_a_finding() -> None:
    assert between(lambda h, _: torch.tanh(h + 1e5), policy=Policy(full=("add",))) == []


def test_a_constant_in_a_programs_own_fp16_is_an_error() -> None:
    (found,) = between(lambda h, _: (h.half() + 1e-8).float())
    assert (found.rule, found.severity) == ("MP102", ERROR)
    assert "as the program itself asks for it" in found.message


def test_a_long_sum_in_16_bits_is_found() -> None:
    policy = Policy(half=("sum",))
    (found,) = between(lambda h, _: h.sum(0, keepdim=True), rows=4096, policy=policy)
    assert (found.rule, found.severity, found.op) == ("MP301", WARNING, "sum")
    assert "4,096 numbers in FP16 as an override" in found.message
    assert "their mean magnitude is above 16" in found.message
    assert between(lambda h, _: h.sum(0, keepdim=True), rows=4096) == []
    assert between(lambda h, _: h.sum(0, keepdim=True), rows=2048, policy=policy) == []


def test_a_program_that_sums_in_its_own_fp16_is_found() -> None:
    (found,) = between(lambda h, _: h.half().sum(0, keepdim=True).float(), rows=4096)
    assert (found.rule, found.severity) == ("MP301", WARNING)
    assert between(lambda h, _: h.half().mean(0, keepdim=True).float(), rows=4096) == []


def test_a_tensor_times_itself_over_a_long_dimension_is_found() -> None:
    assert between(Gram(), rows=8192) == []  # the plan knows it too
    (found,) = between(Gram(), rows=8192, policy=Policy(half=("matmul",)))
    assert (found.rule, found.severity, found.op) == ("MP302", WARNING, "matmul")
    assert found.where.line == line_of(__file__, "a Gram matrix")
    assert "sums of 8,192 squares" in found.message
    assert "above 2.8" in found.message  # sqrt(65504 / 8192)


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        (lambda h, _: (h / 90).T @ (h / 90), 8192),  # the fix
        (Gram(), 2048),
        (lambda h, _: torch.softmax(h.T, -1) @ h, 8192),  # probabilities add up to 1
        (lambda h, _: torch.relu(h).T @ h, 8192),  # signs cancel
    ],
)
def test_products_that_stay_small_are_not_findings(what: Callable[..., Tensor], rows: int) -> None:
    assert between(what, rows=rows) == []


def test_two_activations_over_a_very_long_dimension_are_found() -> None:
    (found,) = between(lambda h, _: torch.relu(h).T @ h, rows=1 << 16)
    assert found.rule == "MP302"
    assert "sums of 65,536 products" in found.message
