"""Gradients that are sums of thousands of terms are right in ONNX Runtime too."""

from __future__ import annotations

import pytest
from programs.long_sums.programs import PROGRAMS

from bench.numerics.sums import LIMIT, error, exact_gradients, exported_gradients
from mpcompile import Precision


@pytest.mark.parametrize("name", ["index", "pad 1d, replicate one element", "a layer 100 times"])
def test_the_update_of_an_exported_step_is_right(name: str) -> None:
    """ONNX Runtime has no ScatterND that adds FP16 on a CPU, so the sum must be FP32 there."""
    model, batch = PROGRAMS[name]()
    found = exported_gradients(model, batch, Precision.FP16, 1024.0)
    assert error(found, exact_gradients(model, batch)) <= LIMIT[Precision.FP16]
