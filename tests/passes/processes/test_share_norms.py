"""A norm of slices becomes that of all of them."""

from __future__ import annotations

import pytest
import torch
from oracles.simulated_ranks import among, run_together
from programs.graphs import inputs_of, layered, run, step_of

from mpcompile.passes.processes.reduce_packed import ReducePacked
from mpcompile.passes.processes.share_norms import ShareNorms
from mpcompile.passes.step.clip_gradients import ClipGradients
from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.program.marks import FINITE
from mpcompile.step.graph import StepGraph, results, set_results
from mpcompile.step.loop import Loop
from mpcompile.step.loss_scale import LossScale


def sharded(loop: Loop) -> StepGraph:
    """Return a step whose update returns the flag, and the norm if there is one."""
    step = step_of(layered(), ranks=2)
    hoist_weight_casts(step)
    pack_gradients(step)
    ReducePacked(loop)(step)
    ClipGradients(loop)(step)
    GateUpdate(LossScale())(step)
    return step


def watched(step: StepGraph) -> None:
    graph = step.update.graph
    found = {"finite": next(node for node in graph.nodes if node in FINITE)}
    norm = [node for node in graph.nodes if node.meta.get("norm") == "total"]
    set_results(graph, {**found, **({"norm": norm[0]} if norm else {})})
    graph.eliminate_dead_code()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("slot", ["grad.0.weight", "grad.3.bias"])
def test_one_bad_gradient_on_one_process_is_seen_by_all(
    slot: str, wrong: float, clip: float | None
) -> None:
    loop = among(2, shard=True, clip=clip)
    step = sharded(loop)
    assert ShareNorms(loop)(step) == (len(step.arenas) if clip is None else 1)
    assert ShareNorms(loop)(step) == 0
    watched(step)
    graph = step.update.graph
    good = inputs_of(step, graph)
    assert all(bool(made[0]) for made in run_together(graph, [good, good]))
    bad = torch.ones(step.slots[slot].shape, dtype=step.slots[slot].dtype)
    bad.view(-1)[-1] = wrong
    for inputs in ([good, inputs_of(step, graph, **{slot: bad})],
                   [inputs_of(step, graph, **{slot: bad}), good]):  # fmt: skip
        assert not any(bool(made[0]) for made in run_together(graph, inputs))


def test_the_norm_to_clip_by_is_that_of_all_gradients() -> None:
    alone = step_of(layered())
    hoist_weight_casts(alone)
    pack_gradients(alone)
    ClipGradients(Loop(0.5))(alone)
    GateUpdate(LossScale())(alone)
    loop = among(2, shard=True, clip=0.5)
    step = sharded(loop)
    ShareNorms(loop)(step)
    watched(alone)
    watched(step)
    graph = step.update.graph
    _, expected = run(alone.update, *inputs_of(alone, alone.update.graph))
    for made in run_together(graph, [inputs_of(step, graph)] * 2):
        torch.testing.assert_close(made[1], expected, rtol=1e-6, atol=0.0)
    assert list(results(graph)) == ["finite", "norm"]
