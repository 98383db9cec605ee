"""What an update reads is averaged once an update."""

from __future__ import annotations

import pytest
import torch
from oracles.simulated_ranks import among, run_together
from programs.graphs import WORKLOADS, inputs_of, run, step_of

from mpcompile.passes.processes.reduce_packed import ReducePacked
from mpcompile.passes.step.accumulate_gradients import AccumulateGradients
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.loop import PLAIN
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role
from mpcompile.torch_private.graphs import copy_graph


def packed(name: str, ranks: int = 1) -> StepGraph:
    step = step_of(WORKLOADS[name](), ranks=ranks)
    hoist_weight_casts(step)
    pack_gradients(step)
    return step


@pytest.mark.parametrize("name", ["layered", "convolution", "matrices"])
def test_the_update_reads_the_mean_of_what_the_processes_have_gathered(name: str) -> None:
    """Which is the update of one process on the mean of the gradients."""
    loop = among(2, accumulate=2)
    step = packed(name)
    AccumulateGradients(loop, LossScale.none())(step)
    before = copy_graph(step.update)
    assert ReducePacked(loop)(step) == len(step.arenas)
    sums = [{s.name: torch.randn(s.shape) for s in step.slots.values() if s.name.endswith(".sum")}
            for _ in range(2)]  # fmt: skip
    mean = {key: (value + sums[1][key]) / 2 for key, value in sums[0].items()}
    expected = run(before, *inputs_of(step, before.graph, **mean))
    graph = step.update.graph
    for made in run_together(graph, [inputs_of(step, graph, **one) for one in sums]):
        for slot, value, wanted in zip(results(graph), made, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6, msg=slot)
    assert ReducePacked(loop)(step) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["layered", "convolution", "tied"])
def test_each_process_updates_its_slice(name: str, precision: str) -> None:
    """The slices one after another are what one process has, whatever the length of the arena."""
    ranks = 3
    whole, step = packed(name), packed(name, ranks)
    loop = among(ranks, shard=True, reduce=precision)
    assert ReducePacked(loop)(step) == len(step.arenas)
    given = [inputs_of(whole, whole.update.graph)] * ranks
    cut = [_slices(whole, step, given[0], rank) for rank in range(ranks)]
    expected = dict(zip(results(whole.update.graph), run(whole.update, *given[0]), strict=True))
    together = run_together(step.update.graph, cut)
    tolerance = {"float32": 1e-6, "bfloat16": 2**-7}[precision]
    for place, slot in enumerate(results(step.update.graph)):
        if step.slots[slot].role is not Role.WORKING:
            joined = torch.cat([made[place].reshape(-1) for made in together])
            wanted = expected[slot].reshape(-1)
            if step.slots[slot].shape == whole.slots[slot].shape:  # a number, which all hold
                wanted = wanted.repeat(ranks)
            joined = joined[: len(wanted)]
            torch.testing.assert_close(joined, wanted, rtol=tolerance, atol=tolerance, msg=slot)


def _slices(
    whole: StepGraph, step: StepGraph, values: list[torch.Tensor], rank: int
) -> list[torch.Tensor]:
    """Return one process's inputs: its slice of each arena, all of everything else."""
    named = dict(
        zip(
            [n.meta["slot"] for n in whole.update.graph.find_nodes(op="placeholder")],
            values,
            strict=True,
        )
    )
    inputs = []
    for node in step.update.graph.find_nodes(op="placeholder"):
        slot, value = step.slots[node.meta["slot"]], named[node.meta["slot"]]
        if value.shape != slot.shape:
            padded = torch.zeros(slot.shape[0] * 3, dtype=value.dtype)
            padded[: len(value)] = value
            value = padded.chunk(3)[rank]
        inputs.append(value)
    return inputs


def test_what_was_averaged_in_backward_is_left_alone() -> None:
    step = packed("layered")
    text = str(step)
    assert ReducePacked(among(2))(step) == 0
    assert ReducePacked(PLAIN)(step) == 0
    assert str(step) == text
