"""Gradient clipping in the update graph, against torch.nn.utils."""

from __future__ import annotations

import pytest
import torch
from programs.graphs import WORKLOADS, inputs_of, layered, run, step_of

from mpcompile.passes.step.clip_gradients import ClipGradients
from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.step.graph import StepGraph
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale

LOOPS = [Loop(max_grad_norm=0.5), Loop(max_grad_value=0.25)]


def prepared(workload: str, loop: Loop) -> StepGraph:
    step = step_of(WORKLOADS[workload](), FULL_PRECISION)
    pack_gradients(step)
    ScaleLoss(LossScale())(step)
    assert ClipGradients(loop)(step) == len(step.arenas)
    step.check()
    return step


@pytest.mark.parametrize("loop", LOOPS, ids=["norm", "value"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_clipping_counts_honestly_and_is_idempotent(workload: str, loop: Loop) -> None:
    step = prepared(workload, loop)
    before = str(step)
    assert ClipGradients(loop)(step) == 0
    assert str(step) == before


def test_without_limits_there_is_nothing_to_clip() -> None:
    step = step_of(layered())
    pack_gradients(step)
    before = str(step)
    assert ClipGradients(PLAIN)(step) == 0
    assert str(step) == before


@pytest.mark.parametrize("loop", LOOPS, ids=["norm", "value"])
def test_the_optimizer_reads_what_torch_would_clip_to(loop: Loop) -> None:
    """Several arenas: the norm is that of all of them."""
    step = prepared("layered", loop)
    scale = 64.0
    values = inputs_of(step, step.update.graph, loss_scale=torch.tensor(scale))
    names = [node.meta["slot"] for node in step.update.graph.find_nodes(op="placeholder")]
    weights = {}
    for name, value in zip(names, values, strict=True):
        if name.startswith("grad."):
            weights[name] = torch.nn.Parameter(torch.zeros_like(value))
            weights[name].grad = value / scale * 40
            value.mul_(40)
    if loop.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(list(weights.values()), loop.max_grad_norm)
    else:
        torch.nn.utils.clip_grad_value_(list(weights.values()), loop.max_grad_value or 0.0)
    clipped = [node for node in step.update.graph.nodes if node.meta.get("clipped")]
    step.update.graph.output_node().args = (tuple(clipped),)
    found = dict(zip([a.name for a in step.arenas], run(step.update, *values), strict=False))
    sizes = {tuple(node.meta["val"].shape) for node in clipped}
    assert sizes == {arena.shape for arena in step.arenas}
    by_shape = {value.shape: value for value in found.values()}
    for arena in step.arenas:
        for name, start in zip(arena.parameters, arena.offsets, strict=False):
            want = weights[f"grad.{name}"].grad
            assert want is not None
            got = by_shape[torch.Size(arena.shape)][start : start + want.numel()].view(want.shape)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("loop", LOOPS, ids=["norm", "value"])
def test_what_is_not_finite_is_a_skip_and_not_clipped_away(loop: Loop, bad: float) -> None:
    """The norm of 1e30 overflows: torch would then multiply every gradient by zero."""
    step = prepared("linear", loop)
    GateUpdate(LossScale())(step)
    given = {"loss_scale": torch.ones(()), "grad.weight": torch.full((3, 4), bad)}
    values = inputs_of(step, step.update.graph, **given)
    finite = next(node for node in step.update.graph.nodes if node.meta.get("finite"))
    step.update.graph.output_node().args = ((finite,),)
    (applied,) = run(step.update, *values)
    assert bool(applied) == (bad == 1e30 and loop.max_grad_norm is None)
