"""FX graphs and exported programs: copied, wrapped in modules, nodes renamed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule

from mpcompile.torch_private.tensors import fake_mode


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """Return the fake mode of a captured graph's ``meta["val"]`` tensors."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return fake_mode()


def drop_profiler_nodes(graph: fx.Graph) -> int:
    """Remove the nodes that ``Optimizer.step`` leaves in a trace for the profiler."""
    dead = [
        node
        for node in graph.nodes
        if node.op == "call_function" and getattr(node.target, "namespace", "") == "profiler"
    ]
    for node in reversed(dead):
        graph.erase_node(node)
    return len(dead)


def module_of(graph: fx.Graph, *owners: torch.nn.Module) -> fx.GraphModule:
    """Return a module around a graph; its Python code is generated at the first call.

    Most graphs are rewritten many times and never called.

    Args:
        graph: the graph.
        owners: modules that hold the attributes of its ``get_attr`` nodes.
    """
    held: dict[str, Any] = {}
    for node in graph.find_nodes(op="get_attr"):
        owner = next(module for module in owners if hasattr(module, str(node.target)))
        held[str(node.target)] = getattr(owner, str(node.target))
    return _LazyGraphModule(held, graph)


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph, and the graphs inside it, with the names of their nodes.

    `Graph.graph_copy` alone may change names. An inner graph with two callers stays one graph.
    """
    return _copy(module, {})


def _copy(module: fx.GraphModule, made: dict[fx.GraphModule, fx.GraphModule]) -> fx.GraphModule:
    if module in made:
        return made[module]
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    output = graph.output(graph.graph_copy(module.graph, nodes))
    output.meta = dict(module.graph.output_node().meta)
    for old, new in nodes.items():
        new.name = old.name
        if new.op == "placeholder":
            new.target = old.target
    made[module] = copied = module_of(graph, module)
    for node in graph.find_nodes(op="get_attr"):
        inner = getattr(module, str(node.target))
        if isinstance(inner, fx.GraphModule):
            setattr(copied, str(node.target), _copy(inner, made))
    return copied


def new_program(
    program: torch.export.ExportedProgram, module: fx.GraphModule
) -> torch.export.ExportedProgram:
    """Return the same exported program around another graph with the same inputs and outputs.

    The signature names nodes; if another node is now an output, it names that node.
    """
    signature = copy.deepcopy(program.graph_signature)
    returned = module.graph.output_node().args[0]
    assert isinstance(returned, list | tuple)
    for spec, node in zip(signature.output_specs, returned, strict=True):
        if isinstance(node, fx.Node) and hasattr(spec.arg, "name"):
            spec.arg.name = node.name
    return torch.export.ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def note_readers(graph: fx.Graph) -> None:
    """Let each node know all its readers.

    If a program has a region without gradients, `torch.export` splits its graph and loses readers
    that nothing reads (torch 2.13, 2.14).
    """
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def rename(node: fx.Node, name: str) -> None:
    """Give a node a name made from any text; torch adds a number if the name is taken."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    node._rename(f"_{name}" if name[:1].isdigit() or not name else name)
    if node.op == "placeholder":
        node.target = node.name  # the argument's name in generated code
