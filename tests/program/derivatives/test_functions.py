"""Custom autograd Functions keep their own backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.eager_training import SideBySide, batches
from programs.functions import FUNCTIONS
from torch import nn

import mpcompile
from mpcompile import CannotCapture, LossScale, Policy, Precision
from mpcompile.program.graph_text import graph_text

BATCHES = batches(20, (6, 8), (6, 8))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_fp32_it_trains_bitwise_as_in_eager_pytorch(name: str) -> None:
    pair = SideBySide(*FUNCTIONS[name](), BATCHES[0])
    losses = pair.train(BATCHES)
    assert all(mine == theirs for mine, theirs in losses)
    assert pair.differing() == []


# Functions that round or choose amplify an error of 16 bits without limit.
STEEP = ("straight_through_round", "learned_step_quantizer", "vector_quantizer")


# Their gradients are too large for FP16 at first, which only skips steps.
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in STEEP])
def test_in_fp16_it_is_close(name: str) -> None:
    torch.manual_seed(0)
    pair = SideBySide(
        *FUNCTIONS[name](),
        BATCHES[0],
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
        policy=Policy(),
        loss_scale=LossScale.static(64.0),
    )
    pair.train(BATCHES)
    assert pair.step.skipped == 0
    assert pair.distance() < 0.05


@pytest.mark.parametrize(
    "name", ["gradient_reversal", "linear_by_hand", "several_outputs", "reversible_block"]
)
def test_inductor_follows_eager_pytorch(name: str) -> None:
    pair = SideBySide(*FUNCTIONS[name](), BATCHES[0], backend="inductor")
    pair.train(BATCHES[:5])
    assert pair.distance() < 1e-4


@pytest.mark.parametrize("name", ["gradient_reversal", "linear_by_hand", "dropout_by_hand"])
@pytest.mark.parametrize("options", [{"accumulate": 2}, {"dynamic": True}])
def test_with_accumulation_and_an_open_batch_size(name: str, options: dict[str, Any]) -> None:
    pair = SideBySide(*FUNCTIONS[name](), BATCHES[0], **options)
    pair.train(BATCHES[:6])
    assert pair.differing() == []


def test_other_batch_shapes_have_their_own_graph() -> None:
    pair = SideBySide(*FUNCTIONS["straight_through_sign"](), BATCHES[0])
    pair.train([*BATCHES[:2], *batches(2, (3, 8), (3, 8)), *BATCHES[2:4]])
    assert pair.differing() == []


def _ops(name: str, policy: Policy) -> str:
    model, loss = FUNCTIONS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, loss, optimizer, BATCHES[0], policy=policy)
    return graph_text(step.step.gradient.graph)


def _matmuls(text: str) -> list[str]:
    lines = [line.split() for line in text.splitlines()]
    return [line[1] for line in lines if len(line) > 2 and line[2] in ("mm", "addmm")]


def test_a_function_that_asks_for_fp32_gets_it_in_both_passes() -> None:
    text = _ops("asks_for_fp32", Policy())
    inside = [dtype for dtype in _matmuls(text) if dtype.startswith("f32")]
    assert len(inside) == 3  # one forward, two backward
    model, loss = FUNCTIONS["asks_for_fp32"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = mpcompile.compile(model, loss, optimizer, BATCHES[0]).plan
    reasons = [row.reason for row in plan.decisions]
    assert "the autograd Function CastInputs asks for FP32" in reasons


def test_other_functions_multiply_in_16_bits_in_both_passes() -> None:
    assert all(dtype.startswith("f16") for dtype in _matmuls(_ops("follows_autocast", Policy())))
    bf16 = _matmuls(_ops("linear_by_hand", Policy(precision=Precision.BF16)))
    assert all(dtype.startswith("bf16") for dtype in bf16)


class Seen(torch.autograd.Function):
    largest: float = 0.0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.clamp(-1e-3, 1e-3)


def _clipped(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    seen: torch.Tensor = Seen.apply(model(x))  # type: ignore[no-untyped-call]
    return ((seen - y) ** 2).mean()


def test_a_nonlinear_backward_sees_gradients_without_the_loss_scale() -> None:
    torch.manual_seed(0)
    pair = SideBySide(
        nn.Linear(8, 8), _clipped, BATCHES[0], policy=Policy(), loss_scale=LossScale.static(4096.0)
    )
    given = pair.step.gradients(*BATCHES[0])
    pair.loss(pair.eager, *BATCHES[0]).backward()
    for name, parameter in pair.eager.named_parameters():
        assert parameter.grad is not None
        error = (given[name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-2


class ReadsAWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, model: nn.Linear) -> torch.Tensor:
        return x @ model.weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None]:
        raise AssertionError("nothing needs a gradient")


def _weight_beside(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    scale: torch.Tensor = ReadsAWeight.apply(x, model)  # type: ignore[no-untyped-call]
    result: torch.Tensor = ((model(x) * scale - y) ** 2).mean()
    return result


def test_a_function_without_differentiable_inputs_passes_no_gradient() -> None:
    pair = SideBySide(nn.Linear(8, 8), _weight_beside, BATCHES[0])
    pair.train(BATCHES[:5])
    assert pair.differing() == []


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def test_a_function_that_writes_to_its_input_is_refused_with_its_line() -> None:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(model: nn.Module, x: torch.Tensor) -> Any:
        return InPlace.apply(model(x)).sum()  # type: ignore[no-untyped-call]

    with pytest.raises(CannotCapture, match=r"Function InPlace writes to its input") as caught:
        mpcompile.compile(model, loss, optimizer, BATCHES[0][:1])
    assert "test_functions.py" in str(caught.value)


def test_a_backward_that_decides_by_values_is_refused() -> None:
    class Decides(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2 if grad.sum() > 0 else grad

    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(model: nn.Module, x: torch.Tensor) -> Any:
        return Decides.apply(model(x)).sum()  # type: ignore[no-untyped-call]

    with pytest.raises(CannotCapture, match="backward of Decides"):
        mpcompile.compile(model, loss, optimizer, BATCHES[0][:1])
