"""Master weights: the cast of each trained weight leaves the step."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import WORKLOADS, inputs_of, linear, run, step_of, tied

from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.program.casts import is_cast
from mpcompile.step.graph import placeholders, results
from mpcompile.step.slots import Role


def test_the_weight_is_not_cast_in_forward_or_backward() -> None:
    step = step_of(linear())
    assert hoist_weight_casts(step) == 2
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
  _to_copy_2                  f16[2,4]  _to_copy batch_0 dtype=f16
  t                           f16[4,3]  t weight_working
  addmm                       f16[2,3]  addmm bias_working _to_copy_2 t
  _to_copy_3                  f32[2,3]  _to_copy addmm dtype=f32
  _log_softmax                f32[2,3]  _log_softmax _to_copy_3 1 False
  nll_loss_forward            tuple     nll_loss_forward _log_softmax batch_1 None 1 -100
  getitem                     f32[]     getitem nll_loss_forward 0
  getitem_1                   f32[]     getitem nll_loss_forward 1
  ones_like                   f32[]     ones_like getitem
  nll_loss_backward           f32[2,3]  nll_loss_backward ones_like _log_softmax batch_1 None 1 -100 getitem_1
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
  arena0_master        f32[64]  input arena0.master
  arena0_grad          f32[64]  input arena0.grad
  group0_lr            f64[]    input group0.lr
  _local_scalar_dense  number   _local_scalar_dense group0_lr
  neg                  number   neg _local_scalar_dense
  add                  f32[64]  add arena0_master arena0_grad alpha=neg
  _to_copy_default     f16[64]  _to_copy add dtype=f16
  return                        arena0.master = add
  return                        arena0.working = _to_copy_default""",
    )
    assert hoist_weight_casts(step) == 0


def test_a_tied_weight_has_one_copy_and_a_norm_has_none() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    assert step.working == {"words.weight", "gate.weight", "gate.bias"}
    working = [slot.name for slot in step.slots.values() if slot.role is Role.WORKING]
    assert working == [*(f"{name}.working" for name in ("words.weight", "gate.weight",
                       "gate.bias")), "arena0.working"]  # fmt: skip
    inputs = placeholders(step.gradient.graph)
    assert not inputs["words.weight"].users
    assert inputs["norm.weight"].users


def test_no_cast_of_a_weight_is_left() -> None:
    for make in WORKLOADS.values():
        step = step_of(make())
        hoist_weight_casts(step)
        for name, node in placeholders(step.gradient.graph).items():
            if step.slots[name].role is Role.MASTER:
                assert not any(is_cast(user) for user in node.users)


def test_weights_with_a_copy_have_an_arena_of_their_own() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    copied, others = step.arenas
    assert copied.parameters == ("words.weight", "gate.weight", "gate.bias")
    assert others.parameters == ("norm.weight", "norm.bias")
    assert copied.offsets == (0, 96, 160, 192)
    assert step.slots["arena0.working"].shape == (192,)
    assert "arena1.working" not in step.slots


def test_the_gradient_graph_computes_the_same() -> None:
    for make in WORKLOADS.values():
        step = step_of(make())
        before = run(step.gradient, *inputs_of(step, step.gradient.graph))
        given = {
            f"{name}.working": inputs_of_one(step, name).half()
            for name in placeholders(step.gradient.graph)
            if step.slots[name].role is Role.MASTER
        }
        hoist_weight_casts(step)
        after = run(step.gradient, *inputs_of(step, step.gradient.graph, **given))
        for left, right in zip(before, after, strict=True):
            assert torch.equal(left, right.to(left.dtype))


def inputs_of_one(step: object, name: str) -> torch.Tensor:
    graph = step.gradient.graph  # type: ignore[attr-defined]
    values = inputs_of(step, graph)  # type: ignore[arg-type]
    return dict(zip(placeholders(graph), values, strict=True))[name]


def test_the_update_writes_the_cast_of_the_next_master() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    values = run(step.update, *inputs_of(step, step.update.graph))
    named = dict(zip(results(step.update.graph), values, strict=True))
    assert torch.equal(named["arena0.working"], named["arena0.master"][:192].half())


def test_gradients_of_working_copies_leave_in_16_bits() -> None:
    step = step_of(tied())
    hoist_weight_casts(step)
    dtypes = {name: node.meta["val"].dtype for name, node in results(step.gradient.graph).items()}
    assert dtypes["grad.words.weight"] is torch.float16
    assert dtypes["grad.gate.bias"] is torch.float16
    assert dtypes["grad.norm.weight"] is torch.float32


def test_in_fp32_there_is_nothing_to_hoist() -> None:
    step = step_of(tied(), FULL_PRECISION)
    text = str(step)
    assert hoist_weight_casts(step) == 0
    assert str(step) == text
