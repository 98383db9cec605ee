"""Casts are shared and cancelled where that is exact, and nowhere else."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import graph_of, run

from mpcompile.passes.forward.clean_casts import clean_casts
from mpcompile.program.graph_text import graph_text
from mpcompile.step.graph import call
from mpcompile.torch_private.graphs import copy_graph

X = torch.randn(4, 6)
HALF = X.half()


def test_two_equal_casts_become_one() -> None:
    module = graph_of(lambda x: x.half().relu() + x.half(), x=X)
    before = copy_graph(module)
    assert clean_casts(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
x         f32[4,6]  input
_to_copy  f16[4,6]  _to_copy x dtype=f16
relu      f16[4,6]  relu _to_copy
add       f16[4,6]  add relu _to_copy
return              add""",
    )
    assert torch.equal(run(module, X)[0], run(before, X)[0])


def test_widening_and_narrowing_back_is_nothing() -> None:
    module = graph_of(lambda x: x.float().half().relu(), x=HALF)
    assert clean_casts(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
x       f16[4,6]  input
relu    f16[4,6]  relu x
return            relu""",
    )
    assert torch.equal(run(module, HALF)[0], HALF.relu())


def test_the_same_through_views() -> None:
    module = graph_of(lambda x: x.float().view(6, 4).t().half().relu(), x=HALF)
    before = copy_graph(module)
    assert clean_casts(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
x       f16[4,6]  input
view_1  f16[6,4]  view x [6,4]
t_1     f16[4,6]  t view_1
relu    f16[4,6]  relu t_1
return            relu""",
    )
    assert torch.equal(run(module, HALF)[0], run(before, HALF)[0])


def test_narrowing_and_widening_back_rounds_and_stays() -> None:
    module = graph_of(lambda x: x.half().float().relu(), x=X)
    text = graph_text(module.graph)
    assert clean_casts(module) == 0
    assert graph_text(module.graph) == text
    assert not torch.equal(run(module, X)[0], X.relu())


def test_another_16_bit_format_on_the_way_stays() -> None:
    module = graph_of(lambda x: x.float().bfloat16().relu(), x=HALF)
    assert clean_casts(module) == 0


def test_arithmetic_between_two_casts_keeps_both() -> None:
    module = graph_of(lambda x: (x.float() * 3).half(), x=HALF)
    assert clean_casts(module) == 0


def test_a_widened_tensor_with_another_reader_keeps_its_cast() -> None:
    module = graph_of(lambda x: (x.float().half().relu(), x.float().sum()), x=HALF)
    before = copy_graph(module)
    assert clean_casts(module) == 2
    assert_expected_inline(
        graph_text(module.graph),
        """\
x         f16[4,6]  input
_to_copy  f32[4,6]  _to_copy x dtype=f32
relu      f16[4,6]  relu x
sum_1     f32[]     sum _to_copy
return              relu
return              sum_1""",
    )
    for left, right in zip(run(module, HALF), run(before, HALF), strict=True):
        assert torch.equal(left, right)


def test_a_cast_of_a_view_uses_the_cast_that_is_there() -> None:
    module = graph_of(lambda x: (x.half().relu(), x.view(6, 4).half().t()), x=X)
    before = copy_graph(module)
    assert clean_casts(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
x         f32[4,6]  input
_to_copy  f16[4,6]  _to_copy x dtype=f16
relu      f16[4,6]  relu _to_copy
view_1    f16[6,4]  view _to_copy [6,4]
t         f16[4,6]  t view_1
return              relu
return              t""",
    )
    for left, right in zip(run(module, X), run(before, X), strict=True):
        assert torch.equal(left, right)


def test_a_constant_is_made_narrow_at_once() -> None:
    module = graph_of(lambda x: x + torch.zeros(4, 6, dtype=torch.float32).half(), x=HALF)
    assert clean_casts(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
x       f16[4,6]  input
zeros   f16[4,6]  zeros [4,6] dtype=f16
add     f16[4,6]  add x zeros
return            add""",
    )
    assert torch.equal(run(module, HALF)[0], HALF)


def test_a_cast_to_the_dtype_it_has_is_nothing() -> None:
    module = graph_of(lambda x: torch.ops.aten._to_copy.default(x, dtype=torch.float32) + 1, x=X)
    assert clean_casts(module) == 1
    assert torch.equal(run(module, X)[0], X + 1)


def test_a_question_for_the_dtype_that_a_tensor_has_is_not_put_to_a_narrow_one() -> None:
    # Models say x.to(other.dtype), which in an FP32 program does nothing.
    module = graph_of(lambda x: x.float().half().relu(), x=HALF)
    wide = next(iter(module.graph.find_nodes(op="placeholder"))).next
    with module.graph.inserting_after(wide):
        asked = call(module.graph, torch.ops.aten.to.dtype, wide, torch.float32)
    wide.replace_all_uses_with(asked, delete_user_cb=lambda user: user is not asked)
    before = copy_graph(module)
    assert clean_casts(module) == 1
    assert_expected_inline(
        graph_text(module.graph),
        """\
x       f16[4,6]  input
relu    f16[4,6]  relu x
return            relu""",
    )
    assert torch.equal(run(module, HALF)[0], run(before, HALF)[0])
