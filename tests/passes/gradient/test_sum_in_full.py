"""Long sums of 16-bit terms are added in FP32."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial, reduce
from itertools import starmap
from typing import Literal

import pytest
import torch
from programs.graphs import graph_of, run
from programs.long_sums.programs import Cell, UsedInALoop
from torch import Tensor, nn

from bench.numerics.sums import LIMIT, error, exact_gradients, our_gradients
from mpcompile import Precision
from mpcompile.passes.gradient.sum_in_full import LEAST, sum_in_full

DTYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def in_a_row(*terms: Tensor) -> Tensor:
    return reduce(torch.add, terms)


def in_pairs(*terms: Tensor) -> Tensor:
    level = list(terms)
    while len(level) > 1:
        rest = level[len(level) // 2 * 2 :]
        level = [*starmap(torch.add, zip(level[::2], level[1::2], strict=False)), *rest]
    return level[0]


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("order", [in_a_row, in_pairs])
@pytest.mark.parametrize("widened", [True, False])
def test_a_sum_is_rounded_once(
    dtype: torch.dtype, order: Callable[..., Tensor], widened: bool
) -> None:
    terms = {f"t{k}": torch.rand(4).to(dtype) + 1 for k in range(400)}
    module = graph_of(lambda *t: order(*t).float() if widened else order(*t), **terms)
    assert sum_in_full(module) == 1
    module.graph.lint()
    exact = sum(value.double() for value in terms.values())
    (found,) = run(module, *terms.values())
    assert found.dtype is (torch.float32 if widened else dtype)
    limit = 1e-5 if widened else ROUNDING[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=limit, atol=0.0)
    assert sum_in_full(module) == 0


@pytest.mark.parametrize("count", range(2, 8))
def test_short_sums_stay(count: int) -> None:
    terms = {f"t{k}": torch.rand(4).half() for k in range(count)}
    assert sum_in_full(graph_of(in_a_row, **terms)) == (count >= LEAST)


def test_a_partial_sum_that_is_read_is_a_term() -> None:
    def program(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        first = a + b + c
        return first.relu(), first + d + e

    terms = {name: torch.rand(4).half() for name in "abcde"}
    assert sum_in_full(graph_of(program, **terms)) == 0


@pytest.mark.parametrize(
    "program",
    [
        lambda a, b: torch.add(a, b, alpha=2) + a + b + a,  # the first is a term
        lambda a, b: a + b[:1] + a + b[:1] + a,  # shapes differ
        lambda a, b: a * b + 1.0 + 2.0 + 3.0 + 4.0,
        lambda a, b: (a + b).float() + a + b,
        lambda a, b: ((a + b) * a + b) * a + b,
    ],
)
def test_what_is_no_long_sum_in_16_bits_keeps_its_numbers(
    program: Callable[..., Tensor],
) -> None:
    terms = {"a": torch.rand(4).half(), "b": torch.rand(4).half()}
    module = graph_of(program, **terms)
    before = run(module, *terms.values())
    sum_in_full(module)
    torch.testing.assert_close(run(module, *terms.values()), before, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("seed", range(30))
def test_random_trees_are_nearer_to_fp64(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    terms = {f"t{k}": torch.randn(64).half() for k in range(draw.randint(4, 40))}

    def program(*given: Tensor) -> Tensor:
        waiting = list(given)
        while len(waiting) > 1:
            draw.shuffle(waiting)
            waiting.append(waiting.pop() + waiting.pop())
        return waiting[0]

    module = graph_of(program, **terms)
    (before,) = run(module, *terms.values())
    assert sum_in_full(module) == 1
    (after,) = run(module, *terms.values())
    exact = sum(value.double() for value in terms.values())
    errors = [float((found.double() - exact).norm()) for found in (before, after)]
    assert errors[1] <= errors[0]


@pytest.mark.parametrize(
    ("kind", "uses", "backend", "precision"),
    [
        (UsedInALoop, 300, "interpreter", Precision.FP16),
        (UsedInALoop, 300, "interpreter", Precision.BF16),
        (UsedInALoop, 40, "inductor", Precision.BF16),
        (partial(Cell, nn.LSTMCell), 40, "interpreter", Precision.FP16),
        (partial(Cell, nn.LSTMCell), 40, "interpreter", Precision.BF16),
    ],
)
def test_gradients_are_right_to_three_roundings(
    kind: Callable[[int], nn.Module],
    uses: int,
    backend: Literal["interpreter", "inductor"],
    precision: Precision,
) -> None:
    torch.manual_seed(0)
    model, x = kind(uses), torch.rand(64, 4) + 0.5
    found = our_gradients(model, x, precision, 64.0, backend)
    assert error(found, exact_gradients(model, x)) < LIMIT[precision]
