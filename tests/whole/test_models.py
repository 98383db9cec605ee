"""The models: bitwise plain PyTorch in FP32, and they learn in mixed precision."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import mpcompile
from mpcompile import FULL_PRECISION
from mpcompile.pipeline import to_step, transform
from mpcompile.program.workload import load
from mpcompile.show.summary import summarize
from mpcompile.step.transformed import Choices, Transformed

MODELS = ("gpt", "lstm", "resnet", "bert", "dcgan", "unet", "tacotron")
# Its attention weights have so many readers that autograd adds up their gradients in another order.
ALMOST = {"tacotron": 1e-5}


@dataclass(frozen=True)
class Made:
    """A model in mixed precision and in FP32, from two copies of it."""

    name: str
    mixed: Transformed
    full: Transformed


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest) -> Made:
    file = f"models/{request.param}.py"
    return Made(
        request.param, transform(load(file)), transform(load(file), Choices(policy=FULL_PRECISION))
    )


def test_in_fp32_a_model_trains_bitwise_as_in_plain_pytorch(made: Made) -> None:
    mine, peer = made.full.workload, load(f"models/{made.name}.py")
    assert mine.data is not None
    assert peer.loss is not None
    assert peer.optimizer is not None
    step = to_step(made.full)
    batches = [batch for batch, _ in zip(mine.data, range(3), strict=False)]
    torch.manual_seed(1)
    found = [step(*batch) for batch in batches]
    torch.manual_seed(1)
    expected = []
    for batch in batches:
        value = peer.loss(peer.model, *batch)
        peer.optimizer.zero_grad()
        torch.autograd.backward(value)
        peer.optimizer.step()
        expected.append(value.detach())
    near = ALMOST.get(made.name, 0.0)
    assert torch.allclose(torch.stack(found), torch.stack(expected), rtol=near, atol=0.0)
    for (key, left), right in zip(
        mine.model.state_dict().items(), peer.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(left, right, rtol=0.0, atol=near), key


def test_a_model_learns_in_mixed_precision(made: Made) -> None:
    data = made.mixed.workload.data
    assert data is not None
    step = to_step(made.mixed)
    losses = [float(step(*batch)) for batch, _ in zip(data, range(12), strict=False)]
    assert min(losses[-3:]) < 0.95 * losses[0]
    assert step.taken + step.skipped == 12
    assert step.taken >= 6


def test_a_model_keeps_less_for_backward_than_in_fp32(made: Made) -> None:
    memory = summarize(made.mixed, made.full).memory
    assert memory["mixed"]["saved"] < 0.8 * memory["fp32"]["saved"]
    assert memory["mixed"]["peak"] < memory["fp32"]["peak"]


def test_a_policy_can_keep_a_module_in_fp32() -> None:
    workload = load("models/gpt.py")
    plan = transform(workload, Choices(policy=mpcompile.Policy(full=("blocks.0",)))).plan
    for decision in plan.decisions:
        if decision.where.module.startswith("blocks.0"):
            assert decision.stores is mpcompile.Precision.FP32, decision
    assert any(decision.stores is mpcompile.Precision.FP16 for decision in plan.decisions)
