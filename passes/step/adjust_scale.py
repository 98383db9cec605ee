"""Grow and back off the loss scale, as nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.marks import FINITE
from mpcompile.step.graph import StepGraph, add_input, call, placeholders, results, set_results
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role, Slot

TRACKER = "growth_tracker"
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class AdjustScale:
    """Insert the rule of ``torch.amp.GradScaler.update`` with a floor and a ceiling.

    Attributes:
        scale: its factors, interval and limits become constants of the graph.

    Example:
        >>> before_and_after(AdjustScale(LossScale()), step_before("adjust_scale"))
        update
        + growth_tracker  i32[]  input growth_tracker
        + add_tensor  i32[]  add growth_tracker 1
        + ge_scalar  b8[]  ge add_tensor 2000
        + _to_copy_default_4  f64[]  _to_copy loss_scale dtype=f64
        + mul_tensor_1  f64[]  mul _to_copy_default_4 2
        + where_self_1  f64[]  where ge_scalar mul_tensor_1 _to_copy_default_4
        + mul_tensor_2  f64[]  mul _to_copy_default_4 0.5
        + where_self_2  f64[]  where lt_scalar where_self_1 mul_tensor_2
        + clamp_default  f64[]  clamp where_self_2 5.96046447754e-08 16777216
        + _to_copy_default_5  f32[]  _to_copy clamp_default dtype=f32
        + zeros_like_default  i32[]  zeros_like growth_tracker
        + logical_not_default  b8[]  logical_not lt_scalar
        + logical_or_default  b8[]  logical_or ge_scalar logical_not_default
        + where_self_3  i32[]  where logical_or_default zeros_like_default add_tensor
        + return  loss_scale = _to_copy_default_5
        + return  growth_tracker = where_self_3
    """

    scale: LossScale

    def __call__(self, step: StepGraph) -> int:
        """Return 1, or 0 if the scale is static or was adjusted before.

        ``scale`` is 0-d FP32 and multiplied in FP64, ``growth_tracker`` 0-d int32. On a
        non-finite gradient the scale is multiplied by `backoff` and the tracker starts at 0; else
        the tracker counts, and when it reaches `interval` the scale is multiplied by `growth` and
        the tracker starts at 0.
        """
        graph, rule = step.update.graph, self.scale
        if not rule.dynamic or TRACKER in step.slots:
            return 0
        slot = Slot(TRACKER, Role.TRACKER, (), torch.int32)
        step.slots[TRACKER] = slot
        finite = next(node for node in graph.nodes if node in FINITE)
        scale = placeholders(graph)[SCALE]
        tracker = add_input(graph, slot, scale)
        with graph.inserting_before(graph.output_node()):
            clean = call(graph, _ATEN.add.Tensor, tracker, 1)
            due = call(graph, _ATEN.ge.Scalar, clean, rule.interval)
            wide = call(graph, _ATEN._to_copy.default, scale, dtype=torch.float64)
            grown = call(graph, _ATEN.mul.Tensor, wide, rule.growth)
            kept = call(graph, _ATEN.where.self, due, grown, wide)
            lower = call(graph, _ATEN.mul.Tensor, wide, rule.backoff)
            chosen = call(graph, _ATEN.where.self, finite, kept, lower)
            limited = call(graph, _ATEN.clamp.default, chosen, rule.floor, rule.ceiling)
            limited = call(graph, _ATEN._to_copy.default, limited, dtype=torch.float32)
            zero = call(graph, _ATEN.zeros_like.default, tracker)
            restart = call(
                graph,
                _ATEN.logical_or.default,
                due,
                call(graph, _ATEN.logical_not.default, finite),
            )
            count = call(graph, _ATEN.where.self, restart, zero, clean)
        set_results(graph, {**results(graph), SCALE: limited, TRACKER: count})
        return 1
