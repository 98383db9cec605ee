"""All uses of inductor, Dynamo and AOTAutograd, each with its purpose.

Checked on the versions of `mpcompile.torch_private.versions`. Their imports take seconds, so they
are inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import draws

Code: TypeAlias = Callable[[list[Any]], Any]
"""Compiled code: takes a list of inputs, which it empties."""

Partition: TypeAlias = Callable[[fx.GraphModule, int], tuple[fx.GraphModule, fx.GraphModule]]


def known_options() -> list[str]:
    """Return the names of inductor's options."""
    from torch._inductor import list_options

    return list(list_options())


def compiled(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    partition: Partition | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    run_as_traced: bool = False,
) -> list[tuple[fx.Graph, Code]]:
    """Compile a graph with inductor as `torch.compile` does below Dynamo.

    Shapes are fixed, except symbols in the shapes of fake inputs.

    Returns each graph that was compiled, in the ops that inductor compiles, and its code: one for
    a graph without derivative; forward and backward for a function that has one. The code stands
    alone: guards, autograd and the handling of views, which AOTAutograd adds around it, are not
    needed here. Code comes from torch's cache on disk if it is there.

    Args:
        module: returns a tuple of tensors; not to be used again.
        inputs: examples; fake ones if the result is not called.
        partition: for a function with a derivative: takes the joint graph in inductor's ops and
            the number of forward's results; returns forward, which also returns the tensors that it
            keeps, and backward.
        options: of ``torch._inductor.config``; they override those of this function.
        run_as_traced: run the graphs node by node instead of compiling them.
    """
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    made: list[tuple[fx.Graph, Code]] = []

    def code(part: fx.GraphModule, *given: Any, **options: Any) -> Any:
        graph = copy_graph(part).graph  # inductor renames nodes
        plain = make_boxed_func(part.forward) if run_as_traced else None
        with config.patch(custom_partitioner_fn=None):  # it has run; it has no cache key
            made.append((graph, plain or compile_fx_inner(part, *given, **options)))
        return made[-1][1]

    patches = {"reorder_for_peak_memory": True, **(options or {})}
    if partition is not None:
        patches["custom_partitioner_fn"] = _partitioner(partition)
    given = next((item.fake_mode for item in inputs if isinstance(item, FakeTensor)), None)
    # Without a shape environment torch takes nothing from its cache.
    is_open = any(isinstance(size, torch.SymInt) for item in inputs for size in item.shape)
    mode = given or FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    settings = {
        # Its key is a graph's text, which does not show the code of a called module.
        "enable_autograd_cache": False,
        "force_non_lazy_backward_lowering": True,
    }
    with (
        tracing(TracingContext(mode)),
        torch._functorch.config.patch(settings),
        torch.set_grad_enabled(partition is not None),
    ):
        compile_fx(
            module,
            list(inputs),
            inner_compile=code,
            config_patches=patches,
            ignore_shape_env=not is_open,
        )
    return made


def _partitioner(partition: Partition) -> Any:
    from torch._inductor.custom_graph_pass import CustomPartitionerFn

    class Partitioner(CustomPartitionerFn):
        def __call__(self, gm: fx.GraphModule, joint_inputs: Any, **options: Any) -> Any:  # noqa: ARG002
            return partition(gm, options["num_fwd_outputs"])

        def uuid(self) -> str:
            return "mpcompile"  # only the halves themselves are compiled and cached

    return Partitioner()


def min_cut(
    joint: fx.GraphModule, results: int, static: list[int], memory_budget: float
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a joint graph, which it changes, by torch's partitioner.

    Inputs are named ``primals`` and ``tangents``; those at the indices `static` are free to keep.
    """
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    # torch merges equal calls, except random ops that it knows by name.
    own = [n for n in joint.graph.nodes if str(n.target).startswith("mpcompile.")]
    merge = not any(map(draws, own))
    with torch._functorch.config.patch(activation_memory_budget=memory_budget, cse=merge):
        return min_cut_rematerialization_partition(
            joint, None, num_fwd_outputs=results, static_lifetime_input_indices=static
        )


def composite(
    module: fx.GraphModule, inputs: Sequence[Any]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Trace a graph of Dynamo into composite ATen ops, none of which writes to a tensor.

    Returns the graph and the placeholders of the inputs that the given one writes to; the next
    values of these are the graph's first results.

    Args:
        module: calls of torch functions.
        inputs: fake tensors and symbols.
    """
    from torch._functorch.aot_autograd import aot_export_module

    module, numbers = _numbers_as_inputs(module)
    given = [*inputs, *(number for _, number in numbers)]
    traced, signature = aot_export_module(module, given, trace_joint=False, pre_dispatch=True)
    assert isinstance(traced, fx.GraphModule)
    _read_numbers(traced.graph, numbers)
    return traced, tuple(signature.user_inputs_to_mutate.values())


_Numbers: TypeAlias = Sequence[tuple[int, Any]]


def _numbers_as_inputs(module: fx.GraphModule) -> tuple[fx.GraphModule, _Numbers]:
    """Let a graph of Dynamo take the Python floats that it reads as further inputs.

    Dynamo hands over a float that has changed as a 0-d tensor, and the graph reads it again by
    ``item``. A second trace does not know that this is the float, and fails as for any value.

    Returns the graph, and for each further input the position of the tensor and the symbol.
    """
    numbers: list[tuple[int, Any]] = []
    copied = copy_graph(module)
    placeholders = copied.graph.find_nodes(op="placeholder")
    for node in copied.graph.find_nodes(op="call_method", target="item"):
        symbol = node.meta.get("example_value")
        if node.args[0] in placeholders and isinstance(symbol, torch.SymFloat):
            last = copied.graph.find_nodes(op="placeholder")[-1]
            with copied.graph.inserting_after(last):
                number = copied.graph.placeholder(f"{node.name}_number")
            number.meta = dict(node.meta)
            numbers.append((placeholders.index(node.args[0]), symbol))
            node.replace_all_uses_with(number)
            copied.graph.erase_node(node)
    copied.recompile()
    return (copied if numbers else module), numbers


def _read_numbers(graph: fx.Graph, numbers: _Numbers) -> None:
    """Read again from the tensors what `_numbers_as_inputs` has made inputs."""
    placeholders = graph.find_nodes(op="placeholder")
    further = placeholders[len(placeholders) - len(numbers) :]
    last = placeholders[-1] if placeholders else None
    for node, (position, symbol) in zip(further, numbers, strict=True):
        assert last is not None
        with graph.inserting_after(last):
            read = graph.call_function(
                torch.ops.aten._local_scalar_dense.default, (placeholders[position],)
            )
        read.meta = {**node.meta, "val": symbol}
        node.replace_all_uses_with(read)
        graph.erase_node(node)


def compile_under_autograd(
    dynamo: fx.GraphModule, module: fx.GraphModule | None, inputs: Sequence[Any]
) -> Callable[..., Any]:
    """Compile a graph as ``torch.compile`` does: differentiable, guarded by Dynamo.

    Args:
        dynamo: Dynamo's graph; it knows which inputs keep their address in memory.
        module: the graph to run instead; None: Dynamo's graph. Its first inputs are the same;
            the user has no name for further ones.
        inputs: the example inputs that Dynamo passed to its backend, then those of further inputs.
    """
    from torch._inductor.compile_fx import compile_fx

    if module is None:
        module = dynamo
    module.meta.update(dynamo.meta)
    module._param_name_to_source = dynamo._param_name_to_source
    given = dynamo.graph.find_nodes(op="placeholder")
    for index, new in enumerate(module.graph.find_nodes(op="placeholder")):
        if index >= len(given):
            new._dynamo_source = None
            continue
        old = given[index]
        new.meta.update(old.meta)
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    open_sizes = any(isinstance(value, torch.SymInt) for value in inputs)
    # On a CPU, backward of a convolution with channels last keeps the strides of the first sizes
    # (torch 2.13 and 2.14); on a GPU inductor leaves this out itself.
    patches = {"layout_optimization": False} if open_sizes else None
    made = compile_fx(module, list(inputs), config_patches=patches)
    assert callable(made)
    return made


def break_of(module: fx.GraphModule) -> tuple[str | None, list[Any]]:
    """Return why Dynamo has ended a graph, None at a program's end, and the frames of the user."""
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None, []
    lines = [line.strip() for line in str(reason.reason).splitlines() if line.strip()]
    return (lines[0] if lines else "a graph break"), list(reason.user_stack or ())


def dynamo_constant(placeholder: fx.Node) -> torch.Tensor | None:
    """Return the buffer that an input of a graph of Dynamo stands for; None for anything else."""
    value = placeholder.meta["grapharg"].example
    is_state = hasattr(value, "_dynamo_static_input_type")
    return value if is_state and not isinstance(value, torch.nn.Parameter) else None


def source_of(placeholder: fx.Node) -> str:
    """Return where Dynamo found an input of a graph, such as ``L['self'].weight``."""
    name = placeholder.meta["grapharg"].source.name
    return str(name() if callable(name) else name)  # a method up to torch 2.11
