"""What a step tells its caller."""

from __future__ import annotations

import pytest
import torch
from programs.graphs import inputs_of, linear, run, step_of

from mpcompile.passes.step.clip_gradients import ClipGradients
from mpcompile.passes.step.count_steps import count_steps
from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.report_outcome import report_outcome
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.step.graph import results
from mpcompile.step.loop import Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.whole_step import whole_step


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("gradient", [1.0, float("nan")])
def test_a_gated_step_tells_whether_it_was_applied(gradient: float, gated: bool) -> None:
    step = step_of(linear(), FULL_PRECISION)
    pack_gradients(step)
    GateUpdate(LossScale() if gated else LossScale.none())(step)
    count_steps(step)
    assert report_outcome(step) == 1
    assert report_outcome(step) == 0
    step.check()
    given = {"grad.weight": torch.full((3, 4), gradient)}
    values = run(step.update, *inputs_of(step, step.update.graph, **given))
    named = dict(zip(results(step.update.graph), values, strict=True))
    assert named["step_applied"].dtype is torch.bool
    assert bool(named["step_applied"]) == (gradient == 1.0 or not gated)
    assert "step_applied" not in results(whole_step(step).graph)


def test_the_norm_is_that_before_clipping() -> None:
    step = step_of(linear(), FULL_PRECISION)
    pack_gradients(step)
    ClipGradients(Loop(max_grad_norm=1e-3))(step)
    count_steps(step)
    assert report_outcome(step) == 2
    step.check()
    given = {"grad.weight": torch.full((3, 4), 2.0), "grad.bias": torch.full((3,), 4.0)}
    values = run(step.update, *inputs_of(step, step.update.graph, **given))
    named = dict(zip(results(step.update.graph), values, strict=True))
    torch.testing.assert_close(named["gradient_norm"], torch.tensor((12 * 4.0 + 3 * 16.0) ** 0.5))
