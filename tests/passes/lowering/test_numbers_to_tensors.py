"""Arithmetic on numbers read from tensors, done by 0-d FP64 tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from programs.graphs import inputs_of, linear, run, step_of

from mpcompile.passes.lowering import numbers_to_tensors as rewrites
from mpcompile.passes.lowering.numbers_to_tensors import numbers_to_tensors
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.recorded_number import TAKE_TENSORS
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import op_name

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("Adagrad", {"lr_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("NAdam", {}),
    ("Adamax", {}),
    ("Adadelta", {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("RAdam", {"weight_decay": 0.1}),
    ("RAdam", {"betas": (0.5, 0.9), "decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("ASGD", {"t0": 1.0, "lambd": 0.1}),
    ("Rprop", {}),
    ("Adafactor", {"weight_decay": 0.1}),
]


def workload(name: str, options: dict[str, Any]) -> Workload:
    base = linear()
    optimizer = getattr(torch.optim, name)(base.model.parameters(), lr=0.1, **options)
    return Workload(base.model, base.batch, base.loss, optimizer)


def test_the_graph_of_sgd() -> None:
    step = step_of(workload("SGD", {}), FULL_PRECISION)
    assert numbers_to_tensors(step.update) == 3
    assert_expected_inline(
        graph_text(step.update.graph),
        """\
arena0_master     f32[64]  input arena0.master
arena0_grad       f32[64]  input arena0.grad
group0_lr         f64[]    input group0.lr
_to_copy_default  f64[]    _to_copy group0_lr dtype=f64
neg_default       f64[]    neg _to_copy_default
mul_tensor        f32[64]  mul arena0_grad neg_default
add_tensor        f32[64]  add arena0_master mul_tensor
return                     arena0.master = add_tensor""",
    )
    assert numbers_to_tensors(step.update) == 0


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_every_optimizer_computes_the_same_to_fp32_rounding(
    name: str, options: dict[str, Any]
) -> None:
    step = step_of(workload(name, options), FULL_PRECISION)
    rates = {"group0.lr": torch.tensor(0.1, dtype=torch.float64)}
    inputs = inputs_of(step, step.update.graph, **rates)
    before = copy_graph(step.update)(*inputs)
    assert numbers_to_tensors(step.update) > 0
    assert all(op_name(node) != "_local_scalar_dense" for node in step.update.graph.nodes)
    after = run(step.update, *inputs)
    for left, right in zip(before, after, strict=True):
        torch.testing.assert_close(left, right, rtol=2.0**-21, atol=2.0**-24, equal_nan=True)


def test_a_graph_without_numbers_is_left_alone() -> None:
    step = step_of(linear(), FULL_PRECISION)
    text = graph_text(step.gradient.graph)
    assert numbers_to_tensors(step.gradient) == 0
    assert graph_text(step.gradient.graph) == text


def test_numbers_stay_inputs_only_where_a_tensor_can_stand() -> None:
    assert rewrites._ON_TENSORS.keys() == TAKE_TENSORS
