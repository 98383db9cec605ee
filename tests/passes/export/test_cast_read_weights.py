"""What leaves casts the weights that it does not train."""

from __future__ import annotations

import torch
from programs.graphs import inputs_of, partly_frozen, run, step_of

from mpcompile.passes.export.cast_read_weights import CastReadWeights
from mpcompile.passes.step.hoist_read_casts import hoist_read_casts
from mpcompile.program.casts import is_cast
from mpcompile.step.graph import placeholders


def test_casting_again_is_the_graph_before_hoisting() -> None:
    step = step_of(partly_frozen())
    names = [*placeholders(step.gradient.graph)]
    before = run(step.gradient, *inputs_of(step, step.gradient.graph))
    assert hoist_read_casts(step) == 2
    rewrite = CastReadWeights(step.slots)
    assert rewrite(step.gradient) == 2
    assert [*placeholders(step.gradient.graph)] == names
    for name in ("0.weight", "0.bias"):
        [cast] = placeholders(step.gradient.graph)[name].users
        assert is_cast(cast)
        assert cast.meta["val"].dtype is torch.float16
    after = run(step.gradient, *inputs_of(step, step.gradient.graph))
    assert all(map(torch.equal, before, after))
    assert rewrite(step.gradient) == 0


def test_a_graph_without_copies_stays_as_it_is() -> None:
    step = step_of(partly_frozen())
    text = str(step)
    assert CastReadWeights(step.slots)(step.gradient) == 0
    assert str(step) == text
