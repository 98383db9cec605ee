"""Start backward from the loss scale instead of 1, and divide it out of the FP32 gradients.

Paper, section 3.2: scaling the loss scales every gradient by the chain rule; the gradients are
unscaled in FP32, right after backward, before clipping and weight decay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcompile.program.marks import BACKWARD_SEED, PACKED
from mpcompile.step.graph import StepGraph, add_input, call
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role, Slot

SCALE = "loss_scale"
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class ScaleLoss:
    """Insert the scale into backward and its inverse into the update.

    Attributes:
        scale: `LossScale.none` inserts nothing.

    Example:
        >>> before_and_after(ScaleLoss(LossScale.static(128.0)), step_before("scale_loss"))
        gradient
        + loss_scale  f32[]  input loss_scale
        - ones_like  f32[]  ones_like sum_1
        - expand  f32[2,3]  expand ones_like [2,3]
        + expand  f32[2,3]  expand loss_scale [2,3]
        update
        + loss_scale  f32[]  input loss_scale
        + _to_copy_default_2  f64[]  _to_copy loss_scale dtype=f64
        + reciprocal_default  f64[]  reciprocal _to_copy_default_2
        + _to_copy_default_3  f32[]  _to_copy reciprocal_default dtype=f32
        + mul_tensor  f32[32]  mul _to_copy_default_1 _to_copy_default_3
        - add  f32[32]  add arena0_master _to_copy_default_1 alpha=neg
        + add  f32[32]  add arena0_master mul_tensor alpha=neg
    """

    scale: LossScale

    def __call__(self, step: StepGraph) -> int:
        """Return 1 for the seed plus 1 for each arena unscaled, or 0 if that was done before.

        The scale is a 0-d FP32 slot. Its inverse is rounded from FP64, as in
        ``torch.amp.GradScaler``.
        """
        if not self.scale.active or SCALE in step.slots:
            return 0
        slot = Slot(SCALE, Role.SCALE, (), torch.float32)
        step.slots[SCALE] = slot
        gradient, update = step.gradient.graph, step.update.graph
        seed = next(node for node in gradient.nodes if node in BACKWARD_SEED)
        seed.replace_all_uses_with(add_input(gradient, slot, seed))
        gradient.erase_node(seed)
        packed = [node for node in update.nodes if node in PACKED]
        scale = add_input(update, slot, packed[0])
        first = next(node for node in update.nodes if node.op != "placeholder")
        with update.inserting_before(first):
            wide = call(update, _ATEN._to_copy.default, scale, dtype=torch.float64)
            inverse = call(update, _ATEN.reciprocal.default, wide)
            inverse = call(update, _ATEN._to_copy.default, inverse, dtype=torch.float32)
        for node in packed:
            with update.inserting_after(node):
                unscaled = call(update, _ATEN.mul.Tensor, node, inverse)
            node.replace_all_uses_with(
                unscaled, delete_user_cb=lambda u, new=unscaled: u is not new
            )
            PACKED.move(node, unscaled)
        return 1 + len(packed)
