"""Clip the unscaled FP32 gradients, by their norm or by value, before the optimizer reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.program.marks import CLIPPED, NORM, PACKED
from mpcompile.step.graph import StepGraph, call
from mpcompile.step.loop import Loop

_ATEN = torch.ops.aten
_EPSILON = 1e-6


@dataclass(frozen=True)
class ClipGradients:
    """Insert ``torch.nn.utils.clip_grad_norm_`` or ``clip_grad_value_`` over all arenas.

    Attributes:
        loop: its limits become constants of the graph.

    Example:
        >>> before_and_after(ClipGradients(Loop(max_grad_norm=1.0)), step_before("clip_gradients"))
        update
        + linalg_vector_norm_default  f32[]  linalg_vector_norm mul_tensor
        + add_tensor  f32[]  add linalg_vector_norm_default 1e-06
        + reciprocal_default_1  f32[]  reciprocal add_tensor
        + mul_tensor_1  f32[]  mul reciprocal_default_1 1
        + clamp_default  f32[]  clamp mul_tensor_1 None 1
        + mul_tensor_2  f32[32]  mul mul_tensor clamp_default
        - add  f32[32]  add arena0_master mul_tensor alpha=neg
        + add  f32[32]  add arena0_master mul_tensor_2 alpha=neg
    """

    loop: Loop

    def __call__(self, step: StepGraph) -> int:
        """Return the number of arenas clipped, or 0 if they were clipped before.

        Clipping by norm multiplies the gradients by ``min(1, limit / (norm + 1e-6))``, with the
        norm of all gradients together. `mpcompile.passes.step.gate_update` still reads the
        unclipped gradients: clipping by value turns an infinity into a finite number.
        """
        graph = step.update.graph
        packed = [node for node in graph.nodes if node in PACKED]
        if any(node in CLIPPED for node in graph.nodes):
            return 0
        norm, value = self.loop.max_grad_norm, self.loop.max_grad_value
        if norm is None and value is None:
            return 0
        with graph.inserting_before(packed[-1].next):
            factor = None if norm is None else _factor(graph, packed, norm)
            for node in packed:
                readers = [user for user in node.users if user not in NORM]
                if factor is not None:
                    clipped = call(graph, _ATEN.mul.Tensor, node, factor)
                else:
                    clipped = call(graph, _ATEN.clamp.default, node, -value, value)  # type: ignore[operator]
                CLIPPED[clipped] = True
                for reader in readers:
                    reader.replace_input_with(node, clipped)
        return len(packed)


def _factor(graph: fx.Graph, packed: list[fx.Node], limit: float) -> fx.Node:
    """Return the 0-d FP32 factor; mark the gradients' norm for later passes."""
    norms = [call(graph, _ATEN.linalg_vector_norm.default, node) for node in packed]
    total = norms[0]
    if len(norms) > 1:
        total = call(
            graph, _ATEN.linalg_vector_norm.default, call(graph, _ATEN.stack.default, norms)
        )
    for node in norms:
        NORM[node] = "part"
    NORM[total] = "total"
    above = call(graph, _ATEN.add.Tensor, total, _EPSILON)
    ratio = call(graph, _ATEN.mul.Tensor, call(graph, _ATEN.reciprocal.default, above), limit)
    return call(graph, _ATEN.clamp.default, ratio, None, 1.0)
