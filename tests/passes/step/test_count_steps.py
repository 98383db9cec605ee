"""Counters of steps taken and skipped."""

from __future__ import annotations

import pytest
import torch
from programs.graphs import inputs_of, linear, run, step_of

from mpcompile.passes.step.count_steps import count_steps
from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.step.graph import results
from mpcompile.step.loss_scale import LossScale


@pytest.mark.parametrize(("gradient", "taken", "skipped"), [(1.0, 6, 4), (float("nan"), 5, 5)])
def test_a_gated_step_counts_on_one_of_the_two(gradient: float, taken: int, skipped: int) -> None:
    step = step_of(linear(), FULL_PRECISION)
    pack_gradients(step)
    ScaleLoss(LossScale())(step)
    GateUpdate(LossScale())(step)
    assert count_steps(step) == 2
    assert count_steps(step) == 0
    given = {
        "grad.weight": torch.full((3, 4), gradient),
        "steps_taken": torch.tensor(5),
        "steps_skipped": torch.tensor(4),
    }
    values = run(step.update, *inputs_of(step, step.update.graph, **given))
    named = dict(zip(results(step.update.graph), values, strict=True))
    assert (int(named["steps_taken"]), int(named["steps_skipped"])) == (taken, skipped)
    step.check()


def test_without_a_gate_every_step_is_taken() -> None:
    step = step_of(linear(), FULL_PRECISION)
    pack_gradients(step)
    count_steps(step)
    given = {
        "grad.weight": torch.full((3, 4), float("nan")),
        "steps_taken": torch.tensor(5),
        "steps_skipped": torch.tensor(0),
    }
    values = run(step.update, *inputs_of(step, step.update.graph, **given))
    named = dict(zip(results(step.update.graph), values, strict=True))
    assert (int(named["steps_taken"]), int(named["steps_skipped"])) == (6, 0)
