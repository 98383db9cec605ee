"""The scale's rule as nodes, against GradScaler."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from programs.graphs import inputs_of, linear, run, step_of

from mpcompile.passes.step.adjust_scale import AdjustScale
from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.program.graph_text import graph_text
from mpcompile.step.graph import StepGraph, results
from mpcompile.step.loss_scale import LossScale


def adjusted(rule: LossScale) -> StepGraph:
    step = step_of(linear())
    hoist_weight_casts(step)
    pack_gradients(step)
    for rewrite in (ScaleLoss(rule), GateUpdate(rule), AdjustScale(rule)):
        rewrite(step)
    return step


def next_scale(
    step: StepGraph, scale: torch.Tensor, tracker: torch.Tensor, finite: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.full((3, 4), 1.0 if finite else float("inf")).half()
    given = {"loss_scale": scale, "growth_tracker": tracker, "grad.weight": gradient}
    values = run(step.update, *inputs_of(step, step.update.graph, **given))
    named = dict(zip(results(step.update.graph), values, strict=True))
    return named["loss_scale"], named["growth_tracker"]


def test_the_nodes_of_growth_and_backoff() -> None:
    step = adjusted(LossScale(interval=7, floor=0.5))
    text = graph_text(step.update.graph).splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith("where_self")) + 3
    assert_expected_inline(
        "\n".join(text[start:]),
        """\
ge_scalar                   b8[]      ge add_tensor 7
_to_copy_default_4          f64[]     _to_copy loss_scale dtype=f64
mul_tensor_1                f64[]     mul _to_copy_default_4 2
where_self_1                f64[]     where ge_scalar mul_tensor_1 _to_copy_default_4
mul_tensor_2                f64[]     mul _to_copy_default_4 0.5
where_self_2                f64[]     where lt_scalar where_self_1 mul_tensor_2
clamp_default               f64[]     clamp where_self_2 0.5 16777216
_to_copy_default_5          f32[]     _to_copy clamp_default dtype=f32
zeros_like_default          i32[]     zeros_like growth_tracker
logical_not_default         b8[]      logical_not lt_scalar
logical_or_default          b8[]      logical_or ge_scalar logical_not_default
where_self_3                i32[]     where logical_or_default zeros_like_default add_tensor
return                                arena0.master = where_self
return                                arena0.working = _to_copy_default
return                                loss_scale = _to_copy_default_5
return                                growth_tracker = where_self_3""",
    )
    assert AdjustScale(LossScale(interval=7, floor=0.5))(step) == 0


def test_it_follows_grad_scaler_over_a_thousand_steps() -> None:
    rule = LossScale(5.0, 1.9, 0.3, 3, 2.0**-100, 2.0**100)
    step = adjusted(rule)
    scaler = torch.amp.GradScaler("cpu", 5.0, 1.9, 0.3, 3)
    scaler.scale(torch.ones(()))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scale, tracker = torch.tensor(5.0), torch.tensor(0, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    for finite in (torch.rand(1000, generator=generator) < 0.85).tolist():
        parameter.grad = torch.full((1,), 1.0 if finite else float("nan"))
        scaler.step(optimizer)
        scaler.update()
        scale, tracker = next_scale(step, scale, tracker, finite)
        state = scaler.state_dict()
        assert float(scale) == state["scale"]
        assert int(tracker) == state["_growth_tracker"]


def test_floor_and_ceiling_hold() -> None:
    step = adjusted(LossScale(4.0, interval=1, floor=4.0, ceiling=8.0))
    zero = torch.tensor(0, dtype=torch.int32)
    assert float(next_scale(step, torch.tensor(8.0), zero, True)[0]) == 8.0
    assert float(next_scale(step, torch.tensor(4.0), zero, False)[0]) == 4.0


def test_a_static_scale_is_never_adjusted() -> None:
    rule = LossScale.static(128.0)
    step = step_of(linear())
    hoist_weight_casts(step)
    pack_gradients(step)
    ScaleLoss(rule)(step)
    GateUpdate(rule)(step)
    text = str(step)
    assert AdjustScale(rule)(step) == 0
    assert str(step) == text
