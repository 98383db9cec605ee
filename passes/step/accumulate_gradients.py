"""Add the gradients of several micro-batches in FP32, and let one update read their mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from mpcompile.program.marks import PACKED, SLOT, SLOTS
from mpcompile.step.graph import StepGraph, add_input, call, results, set_results
from mpcompile.step.loop import Loop
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.slots import Role, Slot
from mpcompile.torch_private.graphs import module_of

BEFORE = "before."
"""Prefix of a buffer's value before the first micro-batch of an update."""

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class AccumulateGradients:
    """Move the packing of gradients into its own graph, which runs after each micro-batch.

    Attributes:
        loop: says how many micro-batches make an update.
        scale: says whether an update can be skipped.

    Example:
        >>> rewrite = AccumulateGradients(Loop(accumulate=2), LossScale.none())
        >>> before_and_after(rewrite, step_before("accumulate_gradients"))
        accumulation
        + grad_w  f16[3,4]  input grad.w
        + arena0_sum  f32[32]  input arena0.sum
        + reshape_default  f16[12]  reshape grad_w [-1]
        + new_zeros_default  f16[20]  new_zeros grad_w [20]
        + cat_default  f16[32]  cat [reshape_default,new_zeros_default]
        + _to_copy_default_1  f32[32]  _to_copy cat_default dtype=f32
        + add_tensor  f32[32]  add arena0_sum _to_copy_default_1
        + return  arena0.sum = add_tensor
        update
        + arena0_sum  f32[32]  input arena0.sum
        + div_tensor  f32[32]  div arena0_sum 2
        - grad_w  f16[3,4]  input grad.w
        - reshape_default  f16[12]  reshape grad_w [-1]
        - new_zeros_default  f16[20]  new_zeros grad_w [20]
        - cat_default  f16[32]  cat [reshape_default,new_zeros_default]
        - _to_copy_default_1  f32[32]  _to_copy cat_default dtype=f32
        - add  f32[32]  add arena0_master _to_copy_default_1 alpha=neg
        + add  f32[32]  add arena0_master div_tensor alpha=neg
        + zeros_like_default  f32[32]  zeros_like arena0_sum
        + return  arena0.sum = zeros_like_default
    """

    loop: Loop
    scale: LossScale

    def __call__(self, step: StepGraph) -> int:
        """Return the number of arenas, or 0 if there is nothing to add or it was added before.

        Each micro-batch writes its buffers at once, because the next one reads them. If the update
        is skipped, the buffers get back their values from before the first micro-batch.
        """
        if self.loop.accumulate == 1 or step.accumulation is not None:
            return 0
        update = step.update.graph
        packed = [node for node in update.nodes if node in PACKED]
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        needed = _ancestors(packed)
        for node in [node for node in update.nodes if node in needed]:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            PACKED.discard(copies[node])
        made: dict[str, fx.Node] = {}
        values = results(update)
        for node in packed:
            name, shape = f"{PACKED[node]}.sum", tuple(node.meta["val"].shape)
            slot = step.slots[name] = Slot(name, Role.PENDING, shape, torch.float32)
            total = add_input(graph, slot, copies[node])
            made[name] = call(graph, _ATEN.add.Tensor, total, copies[node])
            total = add_input(update, slot, node)
            with update.inserting_before(node):
                mean = call(update, _ATEN.div.Tensor, total, self.loop.accumulate)
            PACKED.move(node, mean)
            node.replace_all_uses_with(mean)
            with update.inserting_before(update.output_node()):
                values[name] = call(update, _ATEN.zeros_like.default, total)
        for name in [name for name in values if step.slots[name].role is Role.BUFFER]:
            like = values.pop(name)
            made[name] = add_input(graph, step.slots[f"next.{name}"], like)
            if self.scale.gated:
                buffer = step.slots[name]
                step.slots[BEFORE + name] = replace(buffer, name=BEFORE + name, role=Role.PENDING)
                values[name] = add_input(update, buffer, like)
                add_input(update, step.slots[BEFORE + name], like)
        SLOTS[graph.output(())] = ()
        set_results(graph, made)
        set_results(update, values)
        update.eliminate_dead_code()
        for node in list(update.find_nodes(op="placeholder")):
            if step.slots[SLOT[node]].role in (Role.GRADIENT, Role.UPDATED):
                update.erase_node(node)
        step.accumulation = module_of(graph, step.update)
        return len(packed)


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    found = set(nodes)
    waiting = list(nodes)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found
