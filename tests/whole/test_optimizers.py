"""Every dense optimizer of torch.optim, against itself in plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles.eager_optimizer import batch, check_equal, eager_step, pair
from programs.dense_optimizers import OPTIMIZERS, WITH_TENSOR, optimizer_of
from programs.graphs import Tied, cross_entropy
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, LossScale
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name


def test_every_dense_optimizer_of_torch_is_in_the_list() -> None:
    known = {name for name in torch.optim.__all__ if name[0].isupper()}
    assert known - {"Optimizer", "LBFGS", "SparseAdam"} == {name for name, _ in OPTIMIZERS}


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_fifty_steps_in_fp32_are_bitwise_those_of_plain_pytorch(
    name: str, options: dict[str, Any]
) -> None:
    left, right = pair()
    mine, theirs = (optimizer_of(model, name, options) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(50):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
    check_equal(left, right, (mine, theirs))


@pytest.mark.parametrize("name", WITH_TENSOR)
def test_a_learning_rate_that_is_a_tensor_is_computed_with_as_one(name: str) -> None:
    left, right = pair()
    mine, theirs = (optimizer_of(m, name, {}, torch.tensor(0.01)) for m in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(20):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
        if seed % 5 == 4:
            for optimizer in (mine, theirs):
                optimizer.param_groups[0]["lr"].mul_(0.7)
    check_equal(left, right, (mine, theirs))


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_an_accelerator_reads_nothing_back(name: str, options: dict[str, Any], lr: Any) -> None:
    torch.manual_seed(0)
    model = Tied()
    optimizer = optimizer_of(model, name, options, copy.deepcopy(lr))
    step = transform(Workload(model, batch(0), cross_entropy, optimizer)).step
    assert step is not None
    update = copy_graph(step.update)
    numbers_to_tensors(update)
    for node in update.graph.nodes:
        assert op_name(node) not in ("_local_scalar_dense", "item")
        assert node.op == "output" or isinstance(node.meta["val"], torch.Tensor), node


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_mixed_precision_trains_the_same_masters(name: str, options: dict[str, Any]) -> None:
    """From gradients of a mixed-precision step, the FP32 masters go as eager's go from the same."""
    left, right = pair()
    mine, theirs = (optimizer_of(model, name, options) for model in (left, right))
    step = mpcompile.compile(
        left, cross_entropy, mine, batch(0), loss_scale=LossScale.static(2.0**10)
    )
    named = dict(right.named_parameters())
    for seed in range(50):
        gradients = step.gradients(*batch(seed))
        step(*batch(seed))
        for key, value in gradients.items():
            named[key].grad = value.clone()
        theirs.step()
    assert step.taken == 50
    check_equal(left, right, (mine, theirs))


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_of_the_plain_optimizer_is_taken_up(
    name: str, options: dict[str, Any]
) -> None:
    left, right = pair()
    mine, theirs = (optimizer_of(model, name, options) for model in (left, right))
    step = mpcompile.compile(left, cross_entropy, mine, batch(0), policy=FULL_PRECISION)
    for seed in range(7):
        eager_step(right, theirs, seed)
    left.load_state_dict(right.state_dict())
    mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for seed in range(7, 14):
        assert torch.equal(step(*batch(seed)), eager_step(right, theirs, seed))
    check_equal(left, right, (mine, theirs))


@pytest.mark.parametrize("name", ["SGD", "ASGD", "Rprop"])
def test_a_first_step_that_is_skipped_is_not_the_first(name: str) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    left, right = pair()
    mine, theirs = (optimizer_of(model, name, options) for model in (left, right))

    def scaled(model: nn.Module, x: torch.Tensor, y: torch.Tensor, by: torch.Tensor) -> Any:
        return cross_entropy(model, x, y) * by

    one, never = torch.ones(()), torch.tensor(float("inf"))
    step = mpcompile.compile(
        left, scaled, mine, (*batch(0), one), policy=FULL_PRECISION, loss_scale=LossScale(1.0)
    )
    step(*batch(0), never)
    for optimizer in (mine, theirs):
        optimizer.param_groups[0]["lr"] = 0.02
    for seed in range(5):
        step(*batch(seed), one)
        eager_step(right, theirs, seed)
    assert (step.taken, step.skipped) == (5, 1)
    check_equal(left, right, (mine, theirs))
