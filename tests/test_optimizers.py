"""Every dense optimizer of torch.optim, against itself in plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graphs import Tied, cross_entropy
from test_update import batch, check_equal, eager_step, pair
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, LossScale
from mpcompile.passes.numbers_to_tensors import numbers_to_tensors
from mpcompile.pipeline import transform
from mpcompile.torch_private import copy_graph, op_name
from mpcompile.workload import Workload

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1}),
    ("SGD", {"momentum": 0.5, "dampening": 0.9, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.01}),
    ("Adam", {"amsgrad": True, "betas": (0.5, 0.9)}),
    ("Adam", {"weight_decay": 0.01, "decoupled_weight_decay": True, "eps": 1e-3}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("AdamW", {"betas": (0.0, 0.99), "weight_decay": 0}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"weight_decay": 0.1, "maximize": True, "betas": (0.8, 0.9)}),
    ("RAdam", {"betas": (0.8, 0.6)}),  # never rectifies: rho stays at 4, a division by zero
    ("Adamax", {}),
    ("Adamax", {"weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("Adagrad", {"weight_decay": 0.1, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"weight_decay": 0.1, "maximize": True, "rho": 0.5}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("RMSprop", {"weight_decay": 0.1, "maximize": True, "centered": True}),
    ("ASGD", {}),
    ("ASGD", {"t0": 3.0, "lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1}),
    ("ASGD", {"t0": 20, "maximize": True}),
    ("Rprop", {}),
    ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.05), "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"weight_decay": 0.1, "d": 1.5, "eps": (1e-8, 0.1)}),
    ("Adafactor", {"beta2_decay": -0.5, "maximize": True}),
    ("Muon", {}),
    ("Muon", {"nesterov": False, "weight_decay": 0.0, "ns_steps": 3}),
    ("Muon", {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.5}),
]
"""Each optimizer, and each of its options."""

WITH_TENSOR = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop",
               "ASGD", "Rprop", "Adafactor", "Muon"]  # fmt: skip


def optimizer_of(
    model: nn.Module, name: str, options: dict[str, Any], lr: Any = 0.01
) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if name != "Muon" or p.dim() == 2]
    made: torch.optim.Optimizer = getattr(torch.optim, name)(trained, lr=lr, **options)
    return made


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
