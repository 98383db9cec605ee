"""The gradients of an arena lie side by side, aligned, in FP32."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import inputs_of, linear, run, step_of, tied

from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph, placeholders
from mpcompile.torch_private.graphs import copy_graph


def packed_value(step: StepGraph, **given: torch.Tensor) -> torch.Tensor:
    """Run the update graph up to the packed gradient of the first arena."""
    module = copy_graph(step.update)
    node = next(node for node in module.graph.nodes if node.meta.get("packed") == "arena0")
    module.graph.output_node().args = ((node,),)
    return run(module, *inputs_of(step, step.update.graph, **given))[0]


def test_16_bit_gradients_are_joined_before_they_are_widened() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    assert pack_gradients(step) == 2
    assert_expected_inline(
        graph_text(step.update.graph),
        """\
arena0_master          f32[192]   input arena0.master
arena0_step            f32[3]     input arena0.step
arena0_exp_avg         f32[192]   input arena0.exp_avg
arena0_exp_avg_sq      f32[192]   input arena0.exp_avg_sq
arena1_master          f32[64]    input arena1.master
arena1_step            f32[2]     input arena1.step
arena1_exp_avg         f32[64]    input arena1.exp_avg
arena1_exp_avg_sq      f32[64]    input arena1.exp_avg_sq
group0_lr              f64[]      input group0.lr
group0_betas_0         f64[]      input group0.betas.0
group0_betas_1         f64[]      input group0.betas.1
group0_eps             f64[]      input group0.eps
group0_weight_decay    f64[]      input group0.weight_decay
grad_words_weight      f16[10,8]  input grad.words.weight
grad_gate_weight       f16[8,8]   input grad.gate.weight
grad_gate_bias         f16[8]     input grad.gate.bias
grad_norm_weight       f32[8]     input grad.norm.weight
grad_norm_bias         f32[8]     input grad.norm.bias
reshape_default_3      f32[8]     reshape grad_norm_weight [-1]
new_zeros_default_2    f32[24]    new_zeros grad_norm_weight [24]
reshape_default_4      f32[8]     reshape grad_norm_bias [-1]
cat_default_1          f32[64]    cat [reshape_default_3,new_zeros_default_2,reshape_default_4,new_zeros_default_2]
reshape_default        f16[80]    reshape grad_words_weight [-1]
new_zeros_default      f16[16]    new_zeros grad_words_weight [16]
reshape_default_1      f16[64]    reshape grad_gate_weight [-1]
reshape_default_2      f16[8]     reshape grad_gate_bias [-1]
new_zeros_default_1    f16[24]    new_zeros grad_gate_bias [24]
cat_default            f16[192]   cat [reshape_default,new_zeros_default,reshape_default_1,reshape_default_2,new_zeros_default_1]
_to_copy_default_1     f32[192]   _to_copy cat_default dtype=f32
_local_scalar_dense    number     _local_scalar_dense group0_lr
_local_scalar_dense_1  number     _local_scalar_dense group0_betas_0
_local_scalar_dense_2  number     _local_scalar_dense group0_betas_1
_local_scalar_dense_3  number     _local_scalar_dense group0_eps
_local_scalar_dense_4  number     _local_scalar_dense group0_weight_decay
select                 f32[]      select arena0_step 0 0
clone_1                f32[]      clone select
select_1               f32[]      select arena1_step 0 0
clone_5                f32[]      clone select_1
add                    f32[]      add clone_1 1
mul                    number     mul _local_scalar_dense _local_scalar_dense_4
sub                    number     sub 1 mul
mul_1                  f32[192]   mul arena0_master sub
sub_1                  number     sub 1 _local_scalar_dense_1
lerp                   f32[192]   lerp arena0_exp_avg _to_copy_default_1 sub_1
mul_2                  f32[192]   mul arena0_exp_avg_sq _local_scalar_dense_2
sub_2                  number     sub 1 _local_scalar_dense_2
addcmul                f32[192]   addcmul mul_2 _to_copy_default_1 _to_copy_default_1 value=sub_2
_local_scalar_dense_5  number     _local_scalar_dense add
power                  number     power _local_scalar_dense_1 _local_scalar_dense_5
sub_3                  number     sub 1 power
power_1                number     power _local_scalar_dense_2 _local_scalar_dense_5
sub_4                  number     sub 1 power_1
truediv                number     truediv _local_scalar_dense sub_3
power_2                number     power sub_4 0.5
sqrt                   f32[192]   sqrt addcmul
div                    f32[192]   div sqrt power_2
add_1                  f32[192]   add div _local_scalar_dense_3
neg                    number     neg truediv
addcdiv                f32[192]   addcdiv mul_1 lerp add_1 value=neg
add_2                  f32[]      add clone_5 1
mul_3                  number     mul _local_scalar_dense _local_scalar_dense_4
sub_5                  number     sub 1 mul_3
mul_4                  f32[64]    mul arena1_master sub_5
sub_6                  number     sub 1 _local_scalar_dense_1
lerp_1                 f32[64]    lerp arena1_exp_avg cat_default_1 sub_6
mul_5                  f32[64]    mul arena1_exp_avg_sq _local_scalar_dense_2
sub_7                  number     sub 1 _local_scalar_dense_2
addcmul_1              f32[64]    addcmul mul_5 cat_default_1 cat_default_1 value=sub_7
_local_scalar_dense_6  number     _local_scalar_dense add_2
power_3                number     power _local_scalar_dense_1 _local_scalar_dense_6
sub_8                  number     sub 1 power_3
power_4                number     power _local_scalar_dense_2 _local_scalar_dense_6
sub_9                  number     sub 1 power_4
truediv_1              number     truediv _local_scalar_dense sub_8
power_5                number     power sub_9 0.5
sqrt_1                 f32[64]    sqrt addcmul_1
div_1                  f32[64]    div sqrt_1 power_5
add_3                  f32[64]    add div_1 _local_scalar_dense_3
neg_1                  number     neg truediv_1
addcdiv_1              f32[64]    addcdiv mul_4 lerp_1 add_3 value=neg_1
expand_2               f32[3]     expand add [3]
expand_3               f32[2]     expand add_2 [2]
_to_copy_default       f16[192]   _to_copy addcdiv dtype=f16
return                            arena0.master = addcdiv
return                            arena0.step = expand_2
return                            arena0.exp_avg = lerp
return                            arena0.exp_avg_sq = addcmul
return                            arena1.master = addcdiv_1
return                            arena1.step = expand_3
return                            arena1.exp_avg = lerp_1
return                            arena1.exp_avg_sq = addcmul_1
return                            arena0.working = _to_copy_default""",
    )
    assert pack_gradients(step) == 0
    step.check()


def test_each_gradient_lies_at_its_offset_and_gaps_are_zero() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    pack_gradients(step)
    whole = packed_value(step)
    arena = step.arenas[0]
    given = dict(
        zip(placeholders(step.update.graph), inputs_of(step, step.update.graph), strict=True)
    )
    expected = torch.zeros(arena.shape)
    for name, offset in zip(arena.parameters, arena.offsets, strict=False):
        flat = given[f"grad.{name}"].float().flatten()
        expected[offset : offset + flat.numel()] = flat
    assert torch.equal(whole, expected)


def test_an_fp32_step_has_no_cast() -> None:
    step = step_of(linear(), FULL_PRECISION)
    assert pack_gradients(step) == 1
    assert "_to_copy" not in graph_text(step.update.graph)


def test_a_parameter_of_its_own_keeps_its_shape() -> None:
    base = linear()
    weight = dict(base.model.named_parameters())["weight"]
    optimizer = torch.optim.Muon([weight], lr=0.1)
    workload = Workload(base.model, base.batch, base.loss, optimizer)
    for policy in (None, FULL_PRECISION):
        step = step_of(workload, policy)
        hoist_weight_casts(step)
        assert pack_gradients(step) == 1
        step.check()
        gradient = torch.randn(3, 4).to(step.slots["grad.weight"].dtype)
        assert torch.equal(packed_value(step, **{"grad.weight": gradient}), gradient.float())
