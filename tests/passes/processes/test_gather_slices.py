"""Forward reads whole weights, of which each process has updated a slice."""

from __future__ import annotations

import pytest
import torch
from oracles.simulated_ranks import among, run_together
from programs.graphs import WORKLOADS, inputs_of, layered, step_of

from mpcompile.passes.invariants import check_after
from mpcompile.passes.order import training_passes
from mpcompile.passes.processes.gather_slices import GatherSlices
from mpcompile.passes.runner import run_passes
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.loop import PLAIN
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.whole_step import whole_step


@pytest.mark.parametrize("rule", [Policy(), FULL_PRECISION])
@pytest.mark.parametrize("name", ["linear", "tied", "convolution", "layered", "attention"])
def test_what_is_gathered_is_what_the_slices_hold(name: str, rule: Policy) -> None:
    step, loop = step_of(WORKLOADS[name](), rule, ranks=3), among(3, shard=True)
    run_passes(step, training_passes(LossScale(), loop), StepGraph.check, None, check_after)
    graph = step.update.graph
    given = []
    for rank in range(3):
        torch.manual_seed(rank)
        slices = {slot.name: torch.randn(slot.shape) for slot in step.slots.values()
                  if slot.name.endswith(".master")}  # fmt: skip
        given.append(inputs_of(step, graph, **slices))
    together = [dict(zip(results(graph), made, strict=True)) for made in run_together(graph, given)]
    for arena in step.arenas:
        whole = torch.cat([values[f"{arena.name}.master"] for values in together])
        assert whole.shape == (arena.length,)
        for values in together:
            working = values.get(f"{arena.name}.working")
            if working is not None:
                assert torch.equal(working, whole[: len(working)].to(working.dtype))
            if f"{arena.name}.whole" in values:
                assert torch.equal(values[f"{arena.name}.whole"], whole)
            assert working is not None or f"{arena.name}.whole" in values


def test_weights_read_in_16_bits_alone_travel_in_16_bits() -> None:
    step, loop = step_of(layered(), ranks=2), among(2, shard=True)
    run_passes(step, training_passes(LossScale(), loop), StepGraph.check, None, check_after)
    wholes = {name for name in step.slots if name.endswith(".whole")}
    narrow = {arena.name for arena in step.arenas if f"{arena.name}.working" in step.slots}
    assert narrow
    assert wholes == {f"{arena.name}.whole" for arena in step.arenas if arena.name not in narrow}
    assert GatherSlices(loop)(step) == 0
    assert GatherSlices(PLAIN)(step_of(layered())) == 0


def test_the_whole_step_of_slices_is_one_graph() -> None:
    step, loop = step_of(layered(), ranks=2), among(2, shard=True)
    run_passes(step, training_passes(LossScale(), loop), StepGraph.check, None, check_after)
    whole = whole_step(step).graph
    given = inputs_of(step, whole)
    for values in run_together(whole, [given, given]):
        made = dict(zip(results(whole), values, strict=True))
        assert made["loss"].isfinite()
        for arena in step.arenas:
            assert made[f"{arena.name}.master"].shape == arena.shape
    names = {node.meta["slot"] for node in whole.find_nodes(op="placeholder")}
    assert {f"{arena.name}.master" for arena in step.arenas} <= names
