"""Lint finds probabilities that are rounded before their logarithm, and losses in 16 bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers
from programs.lint_programs import between, findings, line_of
from torch import Tensor, nn

import mpcompile
from mpcompile import Policy
from mpcompile.lint.constants import bounds_that_become_one
from mpcompile.lint.finding import Severity
from mpcompile.lint.program import Node, Program
from mpcompile.precision import Precision

ERROR, WARNING, NOTE = Severity
BATCH = (torch.randn(4, 8), torch.rand(4, 1))


class Probability(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
        self.last = nn.Sigmoid()

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        result: Tensor = self.last(self.layers(x))  # a sigmoid
        return result


def test_a_sigmoid_before_binary_cross_entropy_is_found() -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy(model(x, y), y)

    policy = Policy(half=("sigmoid",))
    (found,) = findings(Probability(), *BATCH, loss=loss, policy=policy)
    assert (found.rule, found.severity, found.op) == ("MP201", WARNING, "sigmoid")
    assert (found.where.module, found.node) == ("last", "sigmoid")
    assert found.where.line == line_of(__file__, "a sigmoid")
    assert "stored in FP16: it is 1 for logits above 8.3" in found.message
    for policy in (Policy(), Policy(full=("sigmoid",))):  # the plan knows it too
        (found,) = findings(Probability(), *BATCH, loss=loss, policy=policy)
        assert (found.rule, found.severity) == ("MP201", NOTE)


def test_a_confident_wrong_sigmoid_stops_training() -> None:
    """The rule is right: with a sigmoid in 16 bits every step is skipped."""
    skipped, in_half = {}, Policy(half=("sigmoid",))
    for name, logits, policy in (
        ("sigmoid", False, in_half),
        ("as planned", False, Policy()),
        ("logits", True, Policy()),
    ):
        model = nn.Linear(8, 1)
        nn.init.zeros_(model.weight)
        nn.init.constant_(model.bias, 9.0)

        def loss(model: nn.Module, x: Tensor, y: Tensor, logits: bool = logits) -> Tensor:
            if logits:
                return nn.functional.binary_cross_entropy_with_logits(model(x), y)
            return nn.functional.binary_cross_entropy(torch.sigmoid(model(x)), y)

        batch = (torch.randn(4, 8), torch.zeros(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = mpcompile.compile(model, loss, optimizer, batch, policy=policy)
        values = [float(step(*batch)) for _ in range(20)]
        skipped[name] = step.skipped
        assert values[0] == pytest.approx(100.0 if name == "sigmoid" else 9.0, abs=0.01)
    assert skipped["sigmoid"] == 20
    assert skipped["as planned"] <= 2
    assert skipped["logits"] <= 2


def test_ops_between_sigmoid_and_loss_do_not_hide_the_finding() -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        p = model(x, y).squeeze(-1).clamp(1e-4, 1 - 1e-3)
        return nn.functional.binary_cross_entropy(p, y[:, 0])

    assert [found.rule for found in findings(Probability(), *BATCH, loss=loss)] == ["MP201"]


class Bounded(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        return h.clamp(self.epsilon, 1 - self.epsilon)  # a bound


def test_a_bound_that_rounds_to_one_is_found() -> None:
    (found,) = between(Bounded(1e-4))
    assert (found.rule, found.severity, found.op) == ("MP104", WARNING, "clamp")
    assert found.where.module == "what"
    assert found.where.line == line_of(__file__, "a bound")
    assert "the bound 0.9999 of clamp becomes 1 in FP16" in found.message
    assert between(Bounded(1e-3)) == []
    assert between(Bounded(1e-4), policy=Policy(full=("clamp",))) == []


@given(integers(0, 4096))
def test_a_bound_is_found_if_and_only_if_fp16_rounds_it(step: int) -> None:
    bound = 1 - step * 2.0**-14
    node = Node("a", "clamp", "pointwise", computes=Precision.FP16, bound=bound)
    found = list(bounds_that_become_one(Program("", "torch", Precision.FP16, (node,))))
    assert bool(found) == (bound < 1 and float(np.float16(bound)) == 1.0)


def test_logits_are_not_a_finding() -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model.layers(x)  # type: ignore[operator]
        return nn.functional.binary_cross_entropy_with_logits(logits, y)

    assert findings(Probability(), *BATCH, loss=loss) == []


class ByHand(nn.Module):
    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        p = torch.sigmoid(h)  # a sigmoid by hand
        return torch.log(1 - p + 1e-6)


def test_the_logarithm_of_one_minus_a_sigmoid_is_found() -> None:
    (found,) = between(ByHand(), policy=Policy(half=("sigmoid",)))
    assert (found.rule, found.severity, found.op) == ("MP202", WARNING, "sigmoid")
    (found,) = between(ByHand())
    assert (found.rule, found.severity, found.op) == ("MP202", NOTE, "sigmoid")
    assert found.where.line == line_of(__file__, "a sigmoid by hand")
    assert between(lambda h, _: nn.functional.logsigmoid(-h)) == []


def test_the_logarithm_of_a_softmax_is_found() -> None:
    for policy, severity in ((Policy(half=("softmax",)), WARNING), (Policy(), NOTE)):
        (found,) = between(lambda h, _: torch.softmax(h, -1)[:, :8].log(), policy=policy)
        assert (found.rule, found.severity, found.op) == ("MP202", severity, "softmax")
    assert between(lambda h, _: torch.log_softmax(h, -1)) == []
    assert between(lambda h, _: (torch.softmax(h, -1) + 1e-6).log()) == []
    assert between(lambda h, _: torch.softmax(h, -1) * h.exp().log()) == []


def terms(kind: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return kind(model.layers(x), y)  # type: ignore[operator]

    return loss


def test_a_loss_in_16_bits_by_an_override_is_a_warning() -> None:
    loss = terms(nn.functional.mse_loss)
    policy = Policy(half=("mse_loss",))
    (found,) = findings(Probability(), *BATCH, loss=loss, policy=policy)
    assert (found.rule, found.severity, found.op) == ("MP601", WARNING, "mse_loss")
    assert "computes in FP16 as an override" in found.message
    assert findings(Probability(), *BATCH, loss=loss) == []


def test_a_term_that_the_plan_computes_in_16_bits_is_a_note() -> None:
    loss = terms(lambda p, _: (2 * p).square().mean())
    (found,) = findings(Probability(), *BATCH, loss=loss)
    assert (found.rule, found.severity, found.op) == ("MP601", NOTE, "mul")
    assert found.where.module == ""
    assert findings(Probability(), *BATCH, loss=loss, policy=Policy(full=("node:mul",))) == []


def test_a_term_that_reads_the_batch_is_no_finding() -> None:
    loss = terms(lambda p, y: (p - y).square().mean())
    assert findings(Probability(), *BATCH, loss=loss) == []


@pytest.mark.parametrize("module", ["layers", "layers.1"])
def test_ops_of_the_model_are_not_terms_of_the_loss(module: str) -> None:
    policy = Policy(half=(module,))
    assert findings(Probability(), *BATCH, loss=terms(nn.functional.mse_loss), policy=policy) == []
