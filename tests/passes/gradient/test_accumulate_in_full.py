"""Ops that add up many 16-bit terms in place add them in FP32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs.graphs import graph_of, run
from programs.long_sums.additions import COUNT, IN_16_BITS, IN_FP32
from torch import Tensor

from mpcompile.passes.gradient.accumulate_in_full import LEAST, accumulate_in_full

A = torch.ops.aten


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype)


WINDOWS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "unfold": lambda one, size, step: A.unfold_backward(
        one[:1, None].expand((2 * size - size) // step + 1, size), [2 * size], 0, size, step
    ),
    "col2im": lambda one, size, step: A.col2im(
        one[:1, None].expand(1, size, size // step + 1),
        [1, 2 * size], [1, size], [1, 1], [0, 0], [1, step],
    ),
    "avg_pool2d": lambda one, size, step: A.avg_pool2d_backward(
        one[:1].expand(1, 1, 1, size // step + 1), _zeros(one, 1, 1, 1, 2 * size),
        [1, size], [1, step], [0, 0], False, True, 1,
    ),
}  # fmt: skip
"""Each adds up overlapping windows of a size at a step."""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", IN_16_BITS)
def test_ones_add_up(name: str, dtype: torch.dtype) -> None:
    ones, places = torch.ones(COUNT, dtype=dtype), torch.zeros(COUNT, dtype=torch.long)
    module = graph_of(IN_16_BITS[name], ones=ones, places=places)
    (before,) = run(module, ones, places)
    assert float(before.max()) <= 2048, "this kernel adds in FP32 by itself: no need to widen it"
    assert accumulate_in_full(module) == 1
    module.graph.lint()
    (after,) = run(module, ones, places)
    assert after.dtype is dtype
    assert after.shape == before.shape
    assert float(after.max()) == float(torch.tensor(float(COUNT), dtype=dtype))
    assert accumulate_in_full(module) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_that_overlap_by_much_add_up(name: str, dtype: torch.dtype) -> None:
    ones = torch.ones(1, dtype=dtype)
    module = graph_of(lambda one: WINDOWS[name](one, 3000, 1), one=ones)
    (before,) = run(module, ones)
    assert accumulate_in_full(module) == 1
    (after,) = run(module, ones)
    exact = float(torch.tensor(3000.0, dtype=dtype))
    assert float(before.max()) < float(after.max()) == exact


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_that_overlap_by_little_stay(name: str) -> None:
    ones = torch.ones(1, dtype=torch.float16)
    for size, step in ((LEAST - 1, 1), (64, 64), (2 * LEAST - 2, 2)):
        module = graph_of(lambda one, s=size, t=step: WINDOWS[name](one, s, t), one=ones)
        assert accumulate_in_full(module) == 0


def test_what_overwrites_stays() -> None:
    def program(values: Tensor, places: Tensor) -> Tensor:
        result: Tensor = A.index_put(_zeros(values, 64), [places], values)
        return result

    module = graph_of(program, values=torch.ones(64).half(), places=torch.arange(64))
    assert accumulate_in_full(module) == 0


def test_a_reader_that_widens_reads_the_sum_itself() -> None:
    def program(values: Tensor, places: Tensor) -> Tensor:
        result: Tensor = A.index_put(_zeros(values, 2), [places], values, True)
        return result.float()

    values, places = torch.rand(5000).half(), torch.zeros(5000, dtype=torch.long)
    module = graph_of(program, values=values, places=places)
    assert accumulate_in_full(module) == 1
    (found,) = run(module, values, places)
    exact = values.double().sum()
    assert abs(float(found[0]) - float(exact)) < 1e-5 * float(exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", IN_FP32)
def test_a_kernel_that_adds_in_fp32_is_left_alone(name: str, dtype: torch.dtype) -> None:
    ones, places = torch.ones(COUNT, dtype=dtype), torch.zeros(COUNT, dtype=torch.long)
    module = graph_of(IN_FP32[name], ones=ones, places=places)
    assert accumulate_in_full(module) == 0
    (found,) = run(module, ones, places)
    assert float(found.max()) == float(torch.tensor(float(COUNT), dtype=dtype))
