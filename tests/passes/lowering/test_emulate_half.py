"""Pseudo FP16: FP16 operands, FP32 arithmetic, FP16 result."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import graph_of, run

from mpcompile.passes.lowering.emulate_half import emulate_half
from mpcompile.program.graph_text import graph_text

A = torch.randn(8, 64).half()
B = torch.randn(64, 8).half()


def test_a_matmul_accumulates_in_fp32_and_rounds_once() -> None:
    module = graph_of(lambda a, b: a @ b, a=A, b=B)
    assert emulate_half(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
a                   f16[8,64]  input
b                   f16[64,8]  input
_to_copy_default    f32[8,64]  _to_copy a dtype=f32
_to_copy_default_1  f32[64,8]  _to_copy b dtype=f32
mm                  f32[8,8]   mm _to_copy_default _to_copy_default_1
_to_copy_default_2  f16[8,8]   _to_copy mm dtype=f16
return                         _to_copy_default_2""",
    )
    (found,) = run(module, A, B)
    assert torch.equal(found, (A.float() @ B.float()).half())
    assert emulate_half(module) == 0


def test_an_overflow_is_an_infinity() -> None:
    module = graph_of(lambda a, b: a @ b, a=A, b=B)
    emulate_half(module)
    ones = torch.full((8, 64), 300.0).half()
    (found,) = run(module, ones, ones.t().contiguous())
    assert torch.isinf(found).all()


def test_every_result_is_rounded_not_only_the_last() -> None:
    module = graph_of(lambda a: (a + 1) - 1, a=A * 2.0**-12)
    emulate_half(module)
    (found,) = run(module, A * 2.0**-12)
    expected = ((A * 2.0**-12).float() + 1).half()
    assert torch.equal(found, (expected.float() - 1).half())
    assert not torch.equal(found, A * 2.0**-12)


def test_moving_values_needs_no_arithmetic() -> None:
    module = graph_of(lambda a, b: torch.cat([a.t(), b]).view(-1)[3:9].clone(), a=A, b=B)
    text = graph_text(module.graph)
    assert emulate_half(module) == 0
    assert graph_text(module.graph) == text


def test_fp32_and_integers_are_left_alone() -> None:
    module = graph_of(lambda a, i: a.relu()[i], a=A.float(), i=torch.tensor([1, 2]))
    assert emulate_half(module) == 0


def test_several_results_are_rounded_each() -> None:
    def norm(a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value, mean, _ = torch.ops.aten.native_layer_norm.default(a, [64], None, None, 1e-5)
        return value.relu(), mean

    module = graph_of(norm, a=A)
    assert emulate_half(module) == 2
    assert_expected_inline(
        graph_text(module.graph),
        """\
a                   f16[8,64]  input
_to_copy_default    f32[8,64]  _to_copy a dtype=f32
native_layer_norm   tuple      native_layer_norm _to_copy_default [64] None None 1e-05
getitem             f32[8,64]  getitem native_layer_norm 0
_to_copy_default_1  f16[8,64]  _to_copy getitem dtype=f16
getitem_1           f32[8,1]   getitem native_layer_norm 1
_to_copy_default_2  f16[8,1]   _to_copy getitem_1 dtype=f16
getitem_2           f32[8,1]   getitem native_layer_norm 2
_to_copy_default_3  f16[8,1]   _to_copy getitem_2 dtype=f16
_to_copy_default_4  f32[8,64]  _to_copy _to_copy_default_1 dtype=f32
relu                f32[8,64]  relu _to_copy_default_4
_to_copy_default_5  f16[8,64]  _to_copy relu dtype=f16
return                         _to_copy_default_5
return                         _to_copy_default_2""",
    )
    value, _ = run(module, A)
    expected = torch.nn.functional.layer_norm(A.float(), [64]).half().relu()
    assert torch.equal(value, expected)


def test_a_dtype_that_an_op_is_told_is_widened_too() -> None:
    def backward(gradient: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.aten._softmax_backward_data.default(
            gradient, result, -1, torch.float16
        )
        return made

    gradient, result = torch.randn(8, 64).half(), torch.softmax(A.float(), -1).half()
    module = graph_of(backward, gradient=gradient, result=result)
    assert emulate_half(module) == 1
    (found,) = run(module, gradient, result)
    wide = gradient.float(), result.float()
    expected = wide[1] * (wide[0] - (wide[0] * wide[1]).sum(-1, keepdim=True))
    assert found.dtype is torch.float16
    torch.testing.assert_close(found, expected.half(), rtol=1e-3, atol=1e-7)
    assert emulate_half(module) == 0
