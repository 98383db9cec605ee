"""Insert the casts a plan lists: one per tensor and precision, shared by its readers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from mpcompile.plan import Plan
from mpcompile.torch_private import fake_mode_of


@dataclass(frozen=True)
class InsertCasts:
    """Apply a plan to a forward graph.

    Attributes:
        plan: made from this very graph; its casts name the graph's nodes.
    """

    plan: Plan

    def __call__(self, module: fx.GraphModule) -> int:
        """Insert the casts and propagate the new dtypes; return how many there are.

        A cast stands right before its first reader, so that the copy lives no longer than needed.
        A graph that holds the casts already is left alone.
        """
        graph = module.graph
        nodes = {node.name: node for node in graph.nodes}
        order = {node: position for position, node in enumerate(graph.nodes)}
        inserted = 0
        for cast in self.plan.casts:
            name = cast.id.replace(".", "_")
            if name in nodes:
                continue
            source = nodes[cast.source.replace(".", "_")]
            tensor = nodes[cast.tensor]
            readers = [nodes[reader] for reader in cast.readers]
            chained = [
                nodes[reader]
                for other in self.plan.casts
                if other.source == cast.id
                for reader in other.readers
            ]
            first = min(readers + chained, key=order.__getitem__)
            with graph.inserting_before(first):
                node = graph.create_node(
                    "call_function",
                    torch.ops.aten._to_copy.default,
                    (source,),
                    {"dtype": getattr(torch, cast.to.value)},
                    name=name,
                )
            for key in ("nn_module_stack", "stack_trace", "where"):
                if key in first.meta:
                    node.meta[key] = first.meta[key]
            for reader in readers:
                reader.replace_input_with(tensor, node)
            nodes[name] = node
            inserted += 1
        if inserted:
            inputs = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
            FakeTensorProp(module, fake_mode_of(graph)).propagate_dont_convert_inputs(*inputs)
        return inserted
