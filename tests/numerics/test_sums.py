"""Gradients that are sums of thousands of terms are right to three roundings, in 16 bits too."""

from __future__ import annotations

from functools import partial

import pytest
from programs.long_sums.programs import FAST, LOST_IN_16_BITS, PROGRAMS

from bench.numerics.sums import (
    DTYPES,
    LIMIT,
    autocast_gradients,
    error,
    exact_gradients,
    finite,
    our_gradients,
)
from mpcompile import Precision


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", FAST)
def test_a_long_sum_is_right(name: str, precision: Precision) -> None:
    model, batch = PROGRAMS[name]()
    found = finite(partial(our_gradients, model, batch, precision), precision)
    assert error(found, exact_gradients(model, batch)) <= LIMIT[precision]


@pytest.mark.parametrize("name", LOST_IN_16_BITS)
def test_autocast_loses_it(name: str) -> None:
    model, batch = PROGRAMS[name]()
    found = autocast_gradients(model, batch, Precision.BF16, 1.0)
    assert error(found, exact_gradients(model, batch)) > LIMIT[Precision.BF16]


def test_inductor_adds_in_fp32_too() -> None:
    model, batch = PROGRAMS["pad 1d, replicate one element"]()
    found = our_gradients(model, batch, Precision.BF16, 1.0, "inductor")
    assert error(found, exact_gradients(model, batch)) <= LIMIT[Precision.BF16]
