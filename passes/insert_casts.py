"""Insert the casts a plan lists: one per tensor and precision, shared by its readers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mpcompile.passes.clean_casts import CAST
from mpcompile.plan import Plan
from mpcompile.precision import Precision
from mpcompile.torch_private import with_dtype


@dataclass(frozen=True)
class InsertCasts:
    """Apply a plan to a forward graph.

    Attributes:
        plan: made from this very graph; its casts name the graph's nodes.
    """

    plan: Plan

    def __call__(self, module: fx.GraphModule) -> int:
        """Insert the casts and note the new dtypes; return how many casts there are.

        A cast stands right before its first reader, so that the copy lives no longer than needed.
        A graph to which the plan has been applied is left alone.
        """
        graph = module.graph
        nodes = {node.name: node for node in graph.nodes}
        if not self._note_dtypes(nodes):
            return 0
        order = {node: position for position, node in enumerate(graph.nodes)}
        for cast in self.plan.casts:
            source, tensor = nodes[_name(cast.source)], nodes[cast.tensor]
            readers = [nodes[reader] for reader in cast.readers]
            chained = [
                nodes[reader]
                for other in self.plan.casts
                if other.source == cast.id
                for reader in other.readers
            ]
            first = min(readers + chained, key=order.__getitem__)
            dtype = getattr(torch, cast.to.value)
            with graph.inserting_before(first):
                node = graph.create_node(
                    "call_function", CAST, (source,), {"dtype": dtype}, name=_name(cast.id)
                )
            node.meta["val"] = with_dtype(source.meta["val"], dtype)
            for key in ("nn_module_stack", "stack_trace"):
                if key in first.meta:
                    node.meta[key] = first.meta[key]
            for reader in readers:
                reader.replace_input_with(tensor, node)
            nodes[node.name] = node
        return len(self.plan.casts)

    def _note_dtypes(self, nodes: dict[str, fx.Node]) -> bool:
        """Let the results of ops that compute in 16 bits be 16 bits; return whether any was not."""
        changed = False
        for decision in self.plan.decisions:
            if decision.computes is Precision.FP32 or decision.op not in nodes:
                continue
            node = nodes[decision.op]
            results = [node] if isinstance(node.meta["val"], torch.Tensor) else list(node.users)
            for result in results:
                if result.meta["val"].dtype is torch.float32:
                    dtype = getattr(torch, decision.computes.value)
                    result.meta["val"] = with_dtype(result.meta["val"], dtype)
                    changed = True
        return changed


def _name(cast: str) -> str:
    return cast.replace(".", "_")
