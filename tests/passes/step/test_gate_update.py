"""One flag selects every state write."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from programs.graphs import WORKLOADS, convolution, inputs_of, linear, run, step_of

from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph, placeholders, results
from mpcompile.step.loss_scale import LossScale
from mpcompile.torch_private.graphs import copy_graph


def scaled(workload: Workload) -> StepGraph:
    step = step_of(workload)
    hoist_weight_casts(step)
    pack_gradients(step)
    ScaleLoss(LossScale())(step)
    return step


def test_the_flag_and_the_selections_of_a_linear_layer() -> None:
    step = scaled(linear())
    assert GateUpdate(LossScale())(step) == 1
    assert_expected_inline(
        graph_text(step.update.graph),
        """\
arena0_master               f32[64]   input arena0.master
group0_lr                   f64[]     input group0.lr
grad_weight                 f16[3,4]  input grad.weight
grad_bias                   f16[3]    input grad.bias
loss_scale                  f32[]     input loss_scale
_to_copy_default_2          f64[]     _to_copy loss_scale dtype=f64
reciprocal_default          f64[]     reciprocal _to_copy_default_2
_to_copy_default_3          f32[]     _to_copy reciprocal_default dtype=f32
reshape_default             f16[12]   reshape grad_weight [-1]
new_zeros_default           f16[20]   new_zeros grad_weight [20]
reshape_default_1           f16[3]    reshape grad_bias [-1]
new_zeros_default_1         f16[29]   new_zeros grad_bias [29]
cat_default                 f16[64]   cat [reshape_default,new_zeros_default,reshape_default_1,new_zeros_default_1]
_to_copy_default_1          f32[64]   _to_copy cat_default dtype=f32
mul_tensor                  f32[64]   mul _to_copy_default_1 _to_copy_default_3
linalg_vector_norm_default  f32[]     linalg_vector_norm mul_tensor inf
lt_scalar                   b8[]      lt linalg_vector_norm_default inf
_local_scalar_dense         number    _local_scalar_dense group0_lr
neg                         number    neg _local_scalar_dense
add                         f32[64]   add arena0_master mul_tensor alpha=neg
where_self                  f32[64]   where lt_scalar add arena0_master
_to_copy_default            f16[64]   _to_copy where_self dtype=f16
return                                arena0.master = where_self
return                                arena0.working = _to_copy_default""",
    )
    assert GateUpdate(LossScale())(step) == 0


@pytest.mark.parametrize("name", WORKLOADS)
def test_finite_gradients_pass_through_bit_for_bit(name: str) -> None:
    step = scaled(WORKLOADS[name]())
    before = copy_graph(step.update)
    inputs = inputs_of(step, step.update.graph)
    expected = dict(zip(results(step.update.graph), run(before, *inputs), strict=True))
    GateUpdate(LossScale())(step)
    gated = run(step.update, *inputs_of(step, step.update.graph))
    for slot, value in zip(results(step.update.graph), gated, strict=True):
        assert torch.equal(value, expected[slot]), slot


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", WORKLOADS)
def test_one_bad_element_keeps_all_state(name: str, wrong: float) -> None:
    step = scaled(WORKLOADS[name]())
    GateUpdate(LossScale())(step)
    graph = step.update.graph
    for slot in [slot for slot in step.slots if slot.startswith("grad.")]:
        state = dict(zip(placeholders(graph), inputs_of(step, graph), strict=True))
        bad = state[slot].clone()
        bad.view(-1)[-1] = wrong
        after = run(step.update, *inputs_of(step, graph, **{slot: bad}))
        for written, value in zip(results(graph), after, strict=True):
            arena, _, what = written.partition(".")
            if what == "working":
                master = state[f"{arena}.master"]
                kept = master[: len(value)] if value.dim() == 1 else master
                assert torch.equal(value, kept.half())
            else:
                assert torch.equal(value, state[written]), (slot, written)


def test_an_overflow_that_only_a_scale_below_one_makes_is_caught() -> None:
    step = scaled(linear())
    GateUpdate(LossScale())(step)
    graph = step.update.graph
    state = dict(zip(placeholders(graph), inputs_of(step, graph), strict=True))
    tiny = torch.tensor(2.0**-126)
    large = torch.full((3, 4), 60000.0).half()
    found = run(step.update, *inputs_of(step, graph, loss_scale=tiny, **{"grad.weight": large}))
    assert torch.equal(found[0], state["arena0.master"])


def test_batch_norm_statistics_are_gated() -> None:
    step = scaled(convolution())
    GateUpdate(LossScale())(step)
    gated = {
        name
        for name, node in results(step.update.graph).items()
        if node.target is torch.ops.aten.where.self
    }
    assert gated == {
        "arena0.master", "arena0.momentum_buffer", "arena1.master", "arena1.momentum_buffer",
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip


def test_without_a_gate_nothing_is_selected() -> None:
    step = scaled(linear())
    text = str(step)
    assert GateUpdate(LossScale.none())(step) == 0
    assert str(step) == text
