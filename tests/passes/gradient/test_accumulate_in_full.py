"""Ops that add up many 16-bit terms in place add them in FP32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs.graphs import graph_of, run
from torch import Tensor

from mpcompile.passes.gradient.accumulate_in_full import LEAST, accumulate_in_full

A = torch.ops.aten
COUNT = 20_000
"""Ones that an op adds up to one element: FP16 holds it, and a sum in FP16 ends at 2,048."""


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype)


def _pooled(ones: Tensor, name: str) -> Tensor:
    """Backward of a maximum of one element that `COUNT` places read."""
    axes = int(name[-2])
    x = _zeros(ones, *[1] * (axes + 2))
    size = [1] * (axes - 1) + [COUNT]
    _, places = getattr(A, name)(x, size)
    result: Tensor = getattr(A, f"{name}_backward")(ones.view(1, 1, *size), x, places)
    return result


ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_put": lambda one, at: A.index_put(_zeros(one, 2), [at], one, True),
    "put": lambda one, at: A.put(_zeros(one, 2), at, one, True),
    "index_add": lambda one, at: A.index_add(_zeros(one, 2), 0, at, one),
    "embedding": lambda one, at: A.embedding_dense_backward(one[:, None], at, 2, -1, False),
    "adaptive_avg_pool2d": lambda one, _at: A._adaptive_avg_pool2d_backward(
        one.view(1, 1, 1, -1), _zeros(one, 1, 1, 1, 1)
    ),
    "adaptive_avg_pool3d": lambda one, _at: A._adaptive_avg_pool3d_backward(
        one.view(1, 1, 1, 1, -1), _zeros(one, 1, 1, 1, 1, 1)
    ),
    "adaptive_max_pool2d": lambda one, _at: _pooled(one, "adaptive_max_pool2d"),
    "adaptive_max_pool3d": lambda one, _at: _pooled(one, "adaptive_max_pool3d"),
    "replication_pad1d": lambda one, _at: A.replication_pad1d_backward(
        one.view(1, 1, -1), _zeros(one, 1, 1, 1), [COUNT - 1, 0]
    ),
    "replication_pad2d": lambda one, _at: A.replication_pad2d_backward(
        one.view(1, 1, 1, -1), _zeros(one, 1, 1, 1, 1), [COUNT - 1, 0, 0, 0]
    ),
    "grid_sampler_2d": lambda one, _at: A.grid_sampler_2d_backward(
        one.view(1, 1, 1, -1), _zeros(one, 1, 1, 1, 1), _zeros(one, 1, 1, COUNT, 2),
        0, 0, False, [True, True],
    )[0],
}  # fmt: skip
"""Each adds `COUNT` ones to one element."""

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
@pytest.mark.parametrize("name", ADDITIONS)
def test_ones_add_up(name: str, dtype: torch.dtype) -> None:
    ones, places = torch.ones(COUNT, dtype=dtype), torch.zeros(COUNT, dtype=torch.long)
    module = graph_of(ADDITIONS[name], ones=ones, places=places)
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
        module = graph_of(lambda one, s=size, t=step: WINDOWS[name](one, s, t), one=ones)  # type: ignore[misc]
        assert accumulate_in_full(module) == 0


def test_what_overwrites_stays() -> None:
    def program(values: Tensor, places: Tensor) -> Tensor:
        return A.index_put(_zeros(values, 64), [places], values)

    module = graph_of(program, values=torch.ones(64).half(), places=torch.arange(64))
    assert accumulate_in_full(module) == 0


def test_a_reader_that_widens_reads_the_sum_itself() -> None:
    def program(values: Tensor, places: Tensor) -> Tensor:
        return A.index_put(_zeros(values, 2), [places], values, True).float()

    values, places = torch.rand(5000).half(), torch.zeros(5000, dtype=torch.long)
    module = graph_of(program, values=values, places=places)
    assert accumulate_in_full(module) == 1
    (found,) = run(module, values, places)
    exact = values.double().sum()
    assert abs(float(found[0]) - float(exact)) < 1e-5 * float(exact)
