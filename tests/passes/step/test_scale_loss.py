"""Backward starts from the scale; the packed FP32 gradients are divided by it."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import inputs_of, linear, run, step_of, tied

from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.program.workload import Workload
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.loss_scale import LossScale


def packed(workload: Workload, policy: Policy | None = None) -> StepGraph:
    step = step_of(workload, policy)
    hoist_weight_casts(step)
    pack_gradients(step)
    return step


def test_the_scale_is_the_seed_and_its_inverse_the_unscaling() -> None:
    step = packed(linear())
    assert ScaleLoss(LossScale())(step) == 2
    assert_expected_inline(
        str(step),
        """\
gradient
  weight                      f32[3,4]  input weight
  bias                        f32[3]    input bias
  batch_0                     f32[2,4]  input batch.0
  batch_1                     i64[2]    input batch.1
  weight_working              f16[3,4]  input weight.working
  bias_working                f16[3]    input bias.working
  loss_scale                  f32[]     input loss_scale
  _to_copy_2                  f16[2,4]  _to_copy batch_0 dtype=f16
  t                           f16[4,3]  t weight_working
  addmm                       f16[2,3]  addmm bias_working _to_copy_2 t
  _to_copy_3                  f32[2,3]  _to_copy addmm dtype=f32
  _log_softmax                f32[2,3]  _log_softmax _to_copy_3 1 False
  nll_loss_forward            tuple     nll_loss_forward _log_softmax batch_1 None 1 -100
  getitem                     f32[]     getitem nll_loss_forward 0
  getitem_1                   f32[]     getitem nll_loss_forward 1
  nll_loss_backward           f32[2,3]  nll_loss_backward loss_scale _log_softmax batch_1 None 1 -100 getitem_1
  _log_softmax_backward_data  f32[2,3]  _log_softmax_backward_data nll_loss_backward _log_softmax 1 f32
  _to_copy_4                  f16[2,3]  _to_copy _log_softmax_backward_data dtype=f16
  t_1                         f16[3,2]  t _to_copy_4
  mm                          f16[3,4]  mm t_1 _to_copy_2
  t_2                         f16[4,3]  t mm
  sum_1                       f16[1,3]  sum _to_copy_4 [0] True
  view                        f16[3]    view sum_1 [3]
  t_3                         f16[3,4]  t t_2
  _to_copy_5                  f32[3]    _to_copy view dtype=f32
  _to_copy_6                  f32[3,4]  _to_copy t_3 dtype=f32
  return                                loss = getitem
  return                                grad.weight = t_3
  return                                grad.bias = view
update
  arena0_master        f32[64]   input arena0.master
  group0_lr            f64[]     input group0.lr
  grad_weight          f16[3,4]  input grad.weight
  grad_bias            f16[3]    input grad.bias
  loss_scale           f32[]     input loss_scale
  _to_copy_default_2   f64[]     _to_copy loss_scale dtype=f64
  reciprocal_default   f64[]     reciprocal _to_copy_default_2
  _to_copy_default_3   f32[]     _to_copy reciprocal_default dtype=f32
  reshape_default      f16[12]   reshape grad_weight [-1]
  new_zeros_default    f16[20]   new_zeros grad_weight [20]
  reshape_default_1    f16[3]    reshape grad_bias [-1]
  new_zeros_default_1  f16[29]   new_zeros grad_bias [29]
  cat_default          f16[64]   cat [reshape_default,new_zeros_default,reshape_default_1,new_zeros_default_1]
  _to_copy_default_1   f32[64]   _to_copy cat_default dtype=f32
  mul_tensor           f32[64]   mul _to_copy_default_1 _to_copy_default_3
  _local_scalar_dense  number    _local_scalar_dense group0_lr
  neg                  number    neg _local_scalar_dense
  add                  f32[64]   add arena0_master mul_tensor alpha=neg
  _to_copy_default     f16[64]   _to_copy add dtype=f16
  return                         arena0.master = add
  return                         arena0.working = _to_copy_default""",
    )
    assert ScaleLoss(LossScale())(step) == 0


def test_gradients_are_scaled_exactly_by_a_power_of_two() -> None:
    step = packed(tied(), FULL_PRECISION)
    plain = run(step.gradient, *inputs_of(step, step.gradient.graph))
    ScaleLoss(LossScale())(step)
    scale = {"loss_scale": torch.tensor(1024.0)}
    scaled = run(step.gradient, *inputs_of(step, step.gradient.graph, **scale))
    for name, left, right in zip(results(step.gradient.graph), plain, scaled, strict=True):
        assert torch.equal(right, left if name == "loss" else left * 1024), name


def test_the_update_of_scaled_gradients_is_the_update() -> None:
    step = packed(tied())
    gradients = {
        name: torch.randn(slot.shape).to(slot.dtype)
        for name, slot in step.slots.items()
        if name.startswith("grad.")
    }
    plain = run(step.update, *inputs_of(step, step.update.graph, **gradients))
    ScaleLoss(LossScale())(step)
    scaled = {name: value * 4 for name, value in gradients.items()}
    given = {**scaled, "loss_scale": torch.tensor(4.0)}
    found = run(step.update, *inputs_of(step, step.update.graph, **given))
    for left, right in zip(plain, found, strict=True):
        assert torch.equal(left, right)


def test_the_inverse_is_rounded_as_grad_scaler_rounds_it() -> None:
    step = packed(linear(), FULL_PRECISION)
    ScaleLoss(LossScale.static(3.0))(step)
    parameter = torch.nn.Parameter(torch.zeros(3, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    scaler.scale(torch.ones(()))
    gradient = torch.randn(3, 4)
    parameter.grad = gradient.clone()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler.unscale_(optimizer)
    given = {
        "grad.weight": gradient,
        "grad.bias": torch.zeros(3),
        "loss_scale": torch.tensor(3.0),
        "arena0.master": torch.zeros(64),
        "group0.lr": torch.tensor(0.1, dtype=torch.float64),
    }
    (master,) = run(step.update, *inputs_of(step, step.update.graph, **given))
    optimizer.step()
    assert torch.equal(master[:12].view(3, 4), parameter.detach())


def test_no_scale_inserts_nothing() -> None:
    step = packed(linear(), FULL_PRECISION)
    text = str(step)
    assert ScaleLoss(LossScale.none())(step) == 0
    assert str(step) == text
