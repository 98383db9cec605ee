"""The graph that adds micro-batches up."""

from __future__ import annotations

import pytest
import torch
from programs.graphs import WORKLOADS, convolution, inputs_of, linear, run, step_of

from mpcompile.passes.order import training_passes
from mpcompile.passes.step.accumulate_gradients import BEFORE, AccumulateGradients
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.step.graph import placeholders, results
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role

LOOP = Loop(max_grad_norm=1.0, accumulate=4)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_pass_leaves_a_valid_step_and_nothing_to_do(workload: str, gated: bool) -> None:
    step = step_of(WORKLOADS[workload]())
    passes = training_passes(LossScale() if gated else LossScale.none(), LOOP)
    for rewrite in passes:
        rewrite(step)
        step.check()
        after = str(step)
        assert rewrite(step) == 0
        assert str(step) == after
    assert step.accumulation is not None
    roles = {step.slots[name].role for name in placeholders(step.update.graph)}
    assert not roles & {Role.GRADIENT, Role.UPDATED, Role.PACKED}


def test_one_micro_batch_an_update_needs_no_graph() -> None:
    step = step_of(linear())
    pack_gradients(step)
    before = str(step)
    assert AccumulateGradients(PLAIN, LossScale())(step) == 0
    assert str(step) == before


def test_the_sum_grows_in_fp32_and_the_update_empties_it() -> None:
    step = step_of(linear(), FULL_PRECISION)
    pack_gradients(step)
    AccumulateGradients(Loop(accumulate=2), LossScale.none())(step)
    assert step.accumulation is not None
    graph = step.accumulation.graph
    gradient = torch.arange(12.0).view(3, 4)
    name = next(a.name for a in step.arenas if "weight" in a.parameters)
    start = next(a.offset_of("weight") for a in step.arenas if "weight" in a.parameters)
    shape = step.slots[f"{name}.sum"].shape
    given = {"grad.weight": gradient, f"{name}.sum": torch.full(shape, 100.0)}
    made = dict(
        zip(results(graph), run(step.accumulation, *inputs_of(step, graph, **given)), strict=True)
    )
    found = made[f"{name}.sum"][start : start + 12].view(3, 4)
    assert torch.equal(found, gradient + 100.0)
    values = run(step.update, *inputs_of(step, step.update.graph))
    named = dict(zip(results(step.update.graph), values, strict=True))
    assert not named[f"{name}.sum"].any()


@pytest.mark.parametrize("gated", [True, False])
def test_buffers_are_written_by_each_micro_batch(gated: bool) -> None:
    step = step_of(convolution(), FULL_PRECISION)
    for rewrite in training_passes(LossScale() if gated else LossScale.none(), LOOP):
        rewrite(step)
    assert step.accumulation is not None
    buffers = {name for name, slot in step.slots.items() if slot.role is Role.BUFFER}
    assert buffers == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert buffers <= set(results(step.accumulation.graph))
    kept = {name for name in placeholders(step.update.graph) if name.startswith(BEFORE)}
    assert kept == ({BEFORE + name for name in buffers} if gated else set())
    assert buffers & set(results(step.update.graph)) == (buffers if gated else set())
