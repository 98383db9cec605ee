"""Running statistics are the mean of all processes'."""

from __future__ import annotations

import pytest
import torch
from oracles.simulated_ranks import among, run_together
from programs.graphs import convolution, inputs_of, layered, step_of

from mpcompile.passes.processes.average_buffers import AverageBuffers
from mpcompile.passes.step.accumulate_gradients import AccumulateGradients
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.step.graph import StepGraph, placeholders, results
from mpcompile.step.loop import PLAIN
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role


def packed() -> StepGraph:
    step = step_of(convolution())
    hoist_weight_casts(step)
    pack_gradients(step)
    return step


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_floats_are_averaged_and_counters_are_not(accumulate: int, gated: bool) -> None:
    step, loop = packed(), among(3, accumulate=accumulate)
    AccumulateGradients(loop, LossScale() if gated else LossScale.none())(step)
    assert AverageBuffers(loop)(step) == 2
    graph = step.update.graph
    prefix = "next." if accumulate == 1 else ""
    statistics = [name for name, slot in step.slots.items()
                  if slot.role is Role.BUFFER and slot.dtype is torch.float32]  # fmt: skip
    assert len(statistics) == 2
    own = [{f"{prefix}{name}": torch.randn(step.slots[name].shape) for name in statistics}
           for _ in range(3)]  # fmt: skip
    for made in run_together(graph, [inputs_of(step, graph, **one) for one in own]):
        values = dict(zip(results(graph), made, strict=True))
        for name in statistics:
            mean = torch.stack([one[f"{prefix}{name}"] for one in own]).sum(0) / 3
            assert torch.equal(values[name], mean), name
    counters = {name for name, slot in step.slots.items() if slot.role is Role.BUFFER}
    assert len(counters.difference(statistics)) == 1
    assert {f"{prefix}{name}" for name in statistics} <= set(placeholders(graph))
    assert AverageBuffers(loop)(step) == 0


def test_without_statistics_or_processes_it_does_nothing() -> None:
    step = packed()
    assert AverageBuffers(PLAIN)(step) == 0
    assert AverageBuffers(among(2))(step_of(layered())) == 0
