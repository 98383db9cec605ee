"""`mpcompile.compile` warns if the first batch in 16 bits is far from FP32."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from planted import marked
from planted.marked import line_of
from torch import nn

import mpcompile
from mpcompile import InexactStep, Policy, TrainStep, Workload


def compiled(made: Workload, **options: Any) -> TrainStep:
    assert made.loss is not None
    assert made.optimizer is not None
    return mpcompile.compile(made.model, made.loss, made.optimizer, made.batch, **options)


def test_a_first_batch_that_is_far_off_is_a_warning_with_what_mends_it() -> None:
    with pytest.warns(InexactStep) as caught:
        compiled(marked.program(marked.Logits))
    (found,) = [item for item in caught if item.category is InexactStep]
    assert found.filename == __file__
    said = str(found.message)
    assert f"marked.py:{line_of('logits')}: on the first batch the loss has numbers" in said
    assert said.endswith('; policy=Policy(full=("node:matmul",)) mends it.')
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactStep)
        step = compiled(marked.program(marked.Logits), policy=Policy(full=("node:matmul",)))
    assert bool(step(*marked.program(marked.Logits).batch).isfinite())


@pytest.mark.parametrize(
    ("middle", "options"), [(nn.Identity, {}), (marked.Logits, {"verify": False})]
)
def test_a_sound_step_and_one_that_is_not_verified_give_no_warning(
    middle: Any, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactStep)
        compiled(marked.program(middle), **options)
