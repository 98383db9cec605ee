"""Insert the casts a plan lists: one per tensor and precision, shared by its readers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.plan.plan import Cast, Plan
from mpcompile.precision import Precision
from mpcompile.program.casts import CAST
from mpcompile.program.control_flow import Border, Use, nest_of
from mpcompile.program.marks import PLANNED
from mpcompile.torch_private.tensors import with_dtype


@dataclass(frozen=True)
class InsertCasts:
    """Apply a plan to a forward graph.

    Attributes:
        plan: must be made from this graph; its casts name the graph's nodes.

    Example:
        >>> module = forward(nn.Linear(8, 8, bias=False), f32(2, 8), casts=False)
        >>> before_and_after(InsertCasts(planned(module)), module)
        + p_model_weight_f16  f16[8,8]  _to_copy p_model_weight dtype=f16
        + batch_0_f16  f16[2,8]  _to_copy batch_0 dtype=f16
        - linear  f32[2,8]  linear batch_0 p_model_weight
        + linear  f16[2,8]  linear batch_0_f16 p_model_weight_f16
        + linear_f32  f32[2,8]  _to_copy linear dtype=f32
        - return  linear
        + return  linear_f32
    """

    plan: Plan

    def __call__(self, module: fx.GraphModule) -> int:
        """Insert the casts and note the new dtypes; return how many casts there are.

        A cast is in the graph of the tensor that it converts, right before its first reader, so
        that the copy lives no longer than needed. A graph that has the plan's casts is left alone.
        """
        nest = nest_of(module)
        nodes = {name: node for node, name in nest.nodes.items()}
        borders = {b.id: b for borders in nest.borders.values() for b in borders}
        order = {node: position for position, node in enumerate(nest.nodes)}

        def uses(tensor: fx.Node, readers: tuple[str, ...]) -> list[Use | fx.Node]:
            found: list[Use | fx.Node] = []
            for reader in readers:
                if reader in borders:
                    found += [use for use in borders[reader].reads if use.value is tensor]
                else:
                    found.append(nodes[reader])
            return found

        if not self._note_dtypes(nodes, borders):
            return 0
        after: dict[str, list[Cast]] = defaultdict(list)
        for cast in self.plan.casts:
            after[cast.source].append(cast)
        for cast in self.plan.casts:
            source, tensor = nodes[_node_id(cast, cast.source)], nodes[cast.tensor]
            readers = uses(tensor, cast.readers)
            chained = [use for other in after[cast.id] for use in uses(tensor, other.readers)]
            first = min(map(_node, readers + chained), key=order.__getitem__)
            dtype = getattr(torch, cast.to.value)
            prefix, _, name = _node_id(cast, cast.id).rpartition(".")
            with first.graph.inserting_before(first):
                node = first.graph.create_node(
                    "call_function", CAST, (source,), {"dtype": dtype}, name=name
                )
            node.meta["val"] = with_dtype(source.meta["val"], dtype)
            PLANNED[node] = cast.id
            for key in ("nn_module_stack", "stack_trace"):
                if key in first.meta:
                    node.meta[key] = first.meta[key]
            for reader in readers:
                if isinstance(reader, Use):
                    reader.replace(node)
                else:
                    reader.replace_input_with(tensor, node)
            nodes[f"{prefix}.{node.name}" if prefix else node.name] = node
        return len(self.plan.casts)

    def _note_dtypes(self, nodes: dict[str, fx.Node], borders: dict[str, Border]) -> bool:
        """Give the results of 16-bit ops a 16-bit dtype; return whether any dtype changed."""
        changed = False
        for decision in self.plan.decisions:
            known = decision.op in nodes or decision.op in borders
            if decision.computes is Precision.FP32 or not known:
                continue
            dtype = getattr(torch, decision.computes.value)
            if decision.op in borders:
                border = borders[decision.op]
                results = list(border.writes)
                for caller, index in border.results:
                    values = list(caller.meta["val"])
                    values[index] = with_dtype(values[index], dtype)
                    caller.meta["val"] = type(caller.meta["val"])(values)
            else:
                node = nodes[decision.op]
                results = [node] if isinstance(node.meta["val"], torch.Tensor) else [*node.users]
            for result in results:
                if result.meta["val"].dtype is torch.float32:
                    result.meta["val"] = with_dtype(result.meta["val"], dtype)
                    changed = True
        return changed


def _node_id(cast: Cast, name: str) -> str:
    """Return the id of the node that is a cast, or the tensor's own, in the tensor's graph."""
    return cast.tensor + name.removeprefix(cast.tensor).replace(".", "_")


def _node(use: Use | fx.Node) -> fx.Node:
    return use.reader if isinstance(use, Use) else use
