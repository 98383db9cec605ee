"""Lint names the gradients that autocast adds in 16 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs.lint_programs import between, findings
from torch import Tensor, nn

from mpcompile import FULL_PRECISION, Policy, Precision
from mpcompile.lint.finding import Severity
from mpcompile.lint.gradient_sums import USES

F = nn.functional
BF16 = Policy(precision=Precision.BF16)


class Often(nn.Module):
    """A layer that is used a number of times, and one that is used once."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.uses, self.layer, self.last = uses, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.uses):
            x = self.layer(x).tanh()
        result: Tensor = self.last(x)
        return result


def test_a_weight_that_many_layers_read_is_found_once() -> None:
    (found,) = findings(Often(USES), torch.randn(4, 8), rule="MP303")
    assert (found.severity, found.op, found.node) == (Severity.NOTE, "linear", "linear")
    assert found.message.startswith("64 layers read p_model_layer_weight: autocast rounds")
    assert findings(Often(USES - 1), torch.randn(4, 8), rule="MP303") == []


PLACES = torch.zeros(9600, dtype=torch.long)
READS: dict[str, Callable[[Tensor], Tensor]] = {
    "index": lambda h: h[PLACES],
    "take": lambda h: h.take(PLACES).view(-1, 8),
    "embedding": lambda h: F.embedding(PLACES, h),
    "adaptive_avg_pool1d": lambda h: F.adaptive_avg_pool1d(h.t(), 3000).t(),
    "unfold": lambda h: h.unfold(0, 512, 1).sum(-1),
}


@pytest.mark.parametrize("name", READS)
def test_elements_that_are_read_often_are_found(name: str) -> None:
    rows = 1024 if name == "unfold" else 4
    (found,) = between(lambda h, _: READS[name](h), rows=rows, rule="MP303")
    assert (found.severity, found.op) == (Severity.NOTE, name)
    assert "where a sum of ones stops at 2,048; here the sum is FP32" in found.message
    (found,) = between(lambda h, _: READS[name](h), rows=rows, rule="MP303", policy=BF16)
    assert "in BF16, where a sum of ones stops at 256" in found.message


@pytest.mark.parametrize(
    "what",
    [
        lambda h, _: h[torch.arange(4)],
        lambda h, _: h.index_select(0, PLACES),
        lambda h, held: h[:1] + held[PLACES][:, None],  # the table is an FP32 buffer
        lambda h, _: h.float()[PLACES],
    ],
    ids=["each once", "index_select", "a buffer", "in FP32"],
)
def test_what_is_added_in_fp32_is_not_found(what: Callable[..., Tensor]) -> None:
    assert between(what, rule="MP303") == []


def test_a_layer_norm_of_many_rows_is_found() -> None:
    norm = nn.LayerNorm(8)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.leave = nn.Linear(8, 8), norm, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.leave(self.norm(self.enter(x)))
            return result

    (found,) = findings(Normed(), torch.randn(4096, 8), rule="MP303")
    assert found.message.startswith("layer_norm has 4,096 rows")
    assert findings(Normed(), torch.randn(1024, 8), rule="MP303") == []
    (found,) = findings(Normed(), torch.randn(1024, 8), rule="MP303", policy=BF16)
    assert "stops at 256 a thread" in found.message


def test_a_softmax_of_more_numbers_than_fp16_counts_is_found() -> None:
    def many(h: Tensor, _: Tensor) -> Tensor:
        return h.repeat(1, 10_000).log_softmax(-1)[:, :8]

    (found,) = between(many, rule="MP303")
    assert found.op == "log_softmax"
    assert found.message.startswith("log_softmax adds 80,000 exponentials")
    assert between(many, rule="MP303", policy=BF16) == []


def test_a_program_in_fp32_has_none() -> None:
    assert findings(Often(USES), torch.randn(4, 8), rule="MP303", policy=FULL_PRECISION) == []
