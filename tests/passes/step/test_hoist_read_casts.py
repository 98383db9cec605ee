"""Weights that a step only reads are not cast in it."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import inputs_of, partly_frozen, run, step_of
from torch import nn

from mpcompile.passes.step.drop_dead import drop_dead
from mpcompile.passes.step.hoist_read_casts import hoist_read_casts
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph, placeholders
from mpcompile.step.slots import Role


def shared(step: StepGraph) -> list[str]:
    return [slot.name for slot in step.slots.values() if slot.role is Role.SHARED]


def test_a_frozen_weight_is_read_in_16_bits() -> None:
    step = step_of(partly_frozen())
    assert hoist_read_casts(step) == 2
    assert_expected_inline(
        "\n".join(graph_text(step.gradient.graph).splitlines()[:13]),
        """\
_0_weight                   f32[8,4]  input 0.weight
_0_bias                     f32[8]    input 0.bias
_1_weight                   f32[8]    input 1.weight
_1_bias                     f32[8]    input 1.bias
_2_weight                   f32[3,8]  input 2.weight
batch_0                     f32[2,4]  input batch.0
batch_1                     i64[2]    input batch.1
_0_weight_working           f16[8,4]  input 0.weight.working
_0_bias_working             f16[8]    input 0.bias.working
_to_copy_2                  f16[2,4]  _to_copy batch_0 dtype=f16
t                           f16[4,8]  t _0_weight_working
addmm                       f16[2,8]  addmm _0_bias_working _to_copy_2 t
_to_copy_3                  f32[2,8]  _to_copy addmm dtype=f32""",
    )


def test_the_gradient_graph_computes_the_same() -> None:
    step = step_of(partly_frozen())
    values = inputs_of(step, step.gradient.graph)
    before = run(step.gradient, *values)
    given = dict(zip(placeholders(step.gradient.graph), values, strict=True))
    hoist_read_casts(step)
    copies = {name: given[name.removesuffix(".working")].half() for name in shared(step)}
    after = run(step.gradient, *inputs_of(step, step.gradient.graph, **copies))
    assert all(map(torch.equal, before, after))


def test_the_weight_itself_is_no_input_then_but_counts_as_memory() -> None:
    step = step_of(partly_frozen())
    hoist_read_casts(step)
    drop_dead(step)
    names = shared(step)
    assert names == ["0.weight.working", "0.bias.working"]
    inputs = placeholders(step.gradient.graph)
    assert inputs.keys() >= {*names, "1.weight", "1.bias"}
    assert not inputs.keys() & {"0.weight", "0.bias"}
    assert step.slots["0.weight"].role is step.slots["0.bias"].role is Role.CONSTANT


def test_a_weight_that_the_program_casts_to_fp64_is_left() -> None:
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        bias = model.get_parameter("bias")
        return (
            (nn.functional.linear(x, model.get_parameter("weight")) + bias.double()).mean().float()
        )

    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    step = step_of(Workload(model, (torch.ones(2, 4),), loss, optimizer))
    assert hoist_read_casts(step) == 0


def test_in_fp32_there_is_nothing_to_hoist() -> None:
    step = step_of(partly_frozen(), FULL_PRECISION)
    text = str(step)
    assert hoist_read_casts(step) == 0
    assert str(step) == text
