"""Skip the whole update when a gradient is not finite: one flag selects every state write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.passes.step.accumulate_gradients import BEFORE
from mpcompile.program.marks import FINITE, MEASURE, NORM, PACKED
from mpcompile.step.graph import StepGraph, add_input, call, placeholders, results, set_results
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role

_ATEN = torch.ops.aten
_GATED = (Role.MASTER, Role.OPTIMIZER, Role.BUFFER)


@dataclass(frozen=True)
class GateUpdate:
    """Insert the finite check and the selections.

    Attributes:
        scale: says whether there is a gate.

    Example:
        >>> before_and_after(GateUpdate(LossScale()), step_before("gate_update"))
        update
        + linalg_vector_norm_default  f32[]  linalg_vector_norm mul_tensor inf
        + lt_scalar  b8[]  lt linalg_vector_norm_default inf
        + where_self  f32[32]  where lt_scalar add arena0_master
        - _to_copy_default  f16[32]  _to_copy add dtype=f16
        + _to_copy_default  f16[32]  _to_copy where_self dtype=f16
        - return  arena0.master = add
        + return  arena0.master = where_self
    """

    scale: LossScale

    def __call__(self, step: StepGraph) -> int:
        """Return the number of gated writes, or 0 if they were gated before.

        The flag costs one read of the unscaled FP32 gradients: it is true if their largest
        magnitude is below infinity (a NaN is not). With clipping by norm it tests that norm
        instead. Working copies need no selection: they are cast from the gated master.
        """
        graph = step.update.graph
        if not self.scale.gated or any(node in FINITE for node in graph.nodes):
            return 0
        output = graph.output_node()
        values = results(graph)
        infinity = float("inf")
        flags = []
        measures = [node for node in graph.nodes if NORM.get(node) == "total"]
        if not measures:
            for node in [node for node in graph.nodes if node in PACKED]:
                with graph.inserting_before(node.next):
                    measures.append(call(graph, _ATEN.linalg_vector_norm.default, node, infinity))
                    MEASURE[measures[-1]] = True
        for measure in measures:
            with graph.inserting_before(measure.next):
                flags.append(call(graph, _ATEN.lt.Scalar, measure, infinity))
        with graph.inserting_before(output):
            finite = flags[0]
            for flag in flags[1:]:
                finite = call(graph, _ATEN.logical_and.default, finite, flag)
        FINITE[finite] = True
        gated, inputs = 0, placeholders(graph)
        for name in list(values):
            slot = step.slots[name]
            if slot.role not in _GATED:
                continue
            new = values[name]
            old = inputs.get(BEFORE + name) or inputs.get(name) or add_input(graph, slot, new)
            with graph.inserting_before(output):
                chosen = call(graph, _ATEN.where.self, finite, new, old)
            if slot.role is Role.MASTER:
                _cast_from(chosen, new, values.get(f"{name.removesuffix('master')}working"))
            values[name] = chosen
            gated += 1
        set_results(graph, values)
        return gated


def _cast_from(chosen: fx.Node, new: fx.Node, working: fx.Node | None) -> None:
    """Cast a working copy from ``chosen`` instead of from ``new`` or a slice of it."""
    if working is None:
        return
    chain = [working, *(node for node in working.all_input_nodes if node is not new)]
    chain[-1].replace_input_with(new, chosen)
    for node in chain:  # the node moved last comes first, right behind ``chosen``
        chosen.append(node)
