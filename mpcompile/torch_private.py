"""Every touch of torch that is not public API, each with what it is needed for.

Checked on torch 2.11 and 2.13. Nothing else in the project imports from a torch package or reads a
torch attribute whose name starts with an underscore, or from ``torch.fx.experimental``, but for
`mpcompile.inductor_private`, which is heavy to import.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed._functional_collectives  # the shapes of collective ops
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._higher_order_ops.utils import materialize_as_graph
from torch._logging._internal import trace_structured_artifact
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental import symbolic_shapes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_unflatten
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis


class DispatchMode(TorchDispatchMode):
    """Sees every op that reaches the dispatcher below autograd; see `mpcompile.record`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from guarding each dispatch against dynamo, which never runs here."""
        return False


COLLECTIVES: Any = torch.ops._c10d_functional
"""Operations between processes as ops of a graph; checked on 2.13."""

DataDependent: type[Exception] = symbolic_shapes.GuardOnDataDependentSymNode
"""What tracing raises when Python control flow asks for a tensor's value."""


def fake_mode() -> FakeTensorMode:
    """Return a mode whose tensors have shapes and dtypes but no values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(
    mode: FakeTensorMode, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Make one contiguous fake tensor; the dispatcher would take ten times as long."""
    return FakeTensor(mode, torch.empty(tuple(shape), dtype=dtype, device="meta"), device)


def fake_with(value: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a tensor as a fake one of these sizes if others are fake, in their mode."""
    modes = [other.fake_mode for other in others if isinstance(other, FakeTensor)]
    if not modes or isinstance(value, FakeTensor):
        return value
    return modes[0].from_tensor(value, static_shapes=True)


def is_fake(value: torch.Tensor) -> bool:
    """Whether a tensor has no values."""
    return isinstance(value, FakeTensor)


def device_of(value: torch.Tensor) -> torch.device:
    """Return the device a fake tensor stands for, without asking the dispatcher."""
    return value.fake_device if isinstance(value, FakeTensor) else value.device


def with_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a fake tensor like another, but for its dtype."""
    assert isinstance(value, FakeTensor)
    like = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")
    return FakeTensor(value.fake_mode, like, value.device)


def cast_to(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what ``value.to(dtype)`` is of a fake tensor, without asking its mode's cache."""
    assert isinstance(value, FakeTensor)
    if value._has_symbolic_sizes_strides:
        return value.to(dtype)
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, like.to(dtype), value.fake_device)


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """Return the mode that a captured graph's ``meta["val"]`` tensors belong to."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return fake_mode()


def drop_profiler_nodes(graph: fx.Graph) -> int:
    """Remove what ``Optimizer.step`` leaves in a trace for the profiler."""
    dead = [
        node
        for node in graph.nodes
        if node.op == "call_function" and getattr(node.target, "namespace", "") == "profiler"
    ]
    for node in reversed(dead):
        graph.erase_node(node)
    return len(dead)


def keep_node_meta() -> AbstractContextManager[Any]:
    """Carry ``stack_trace`` and ``nn_module_stack`` of an interpreted graph into a new trace."""
    return torch.fx.traceback.preserve_node_meta()


def module_of(graph: fx.Graph, *owners: torch.nn.Module) -> fx.GraphModule:
    """Return a module around a graph whose Python code is generated when it is first called.

    Most graphs are rewritten many times and called never.

    Args:
        graph: the graph.
        owners: modules that hold what its ``get_attr`` nodes name.
    """
    held: dict[str, Any] = {}
    for node in graph.find_nodes(op="get_attr"):
        owner = next(module for module in owners if hasattr(module, str(node.target)))
        held[str(node.target)] = getattr(owner, str(node.target))
    return _LazyGraphModule(held, graph)


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph, and the graphs inside it, with the names of their nodes.

    `Graph.graph_copy` alone may change names. A graph that stands twice inside stays one graph.
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

    The signature names nodes; where another node now is an output, it names that one.
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


def op_name(node: fx.Node) -> str:
    """Return a node's ATen name without namespace and overload (``add``), or its target's name."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def is_higher_order(node: fx.Node) -> bool:
    """Whether the node calls graphs, like ``torch.cond``."""
    return isinstance(node.target, HigherOrderOperator)


def traced(function: Callable[..., Any], inputs: Sequence[Any]) -> fx.GraphModule:
    """Return what a function does to fake tensors as a graph, unseen by the modes around it.

    torch does the same with the functions that its own autograd gives to control-flow ops.
    """
    module: fx.GraphModule = materialize_as_graph(function, tuple(inputs))
    return module


def is_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with one of its inputs."""
    return _returns_alias(node.target)


@cache
def _returns_alias(target: object) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(
        result.alias_info is not None and not result.alias_info.is_write
        for result in schema.returns
    )


def arguments_of(node: fx.Node) -> dict[str, fx.Node]:
    """Return the nodes among an op's arguments by the names its schema gives them."""
    return {name: value for name, value in given(node).items() if isinstance(value, fx.Node)}


def given(node: fx.Node) -> dict[str, Any]:
    """Return an op's arguments by name, those that are not given by their defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    named = {argument.name: argument.default_value for argument in schema}
    return named | dict(zip(named, node.args, strict=False)) | dict(node.kwargs)


def number_arguments(node: fx.Node, values: Collection[str] = ()) -> dict[str, float]:
    """Return the Python numbers that an op takes as operands, by the names its schema gives them.

    Such an argument is declared a number, or a tensor for which a number may stand; sizes,
    dimensions and options are declared otherwise.

    Args:
        node: a call.
        values: names of arguments that are operands though they are declared as options are.
    """
    if not hasattr(node.target, "_schema"):
        return {}
    kinds = {item.name: str(item.type) for item in node.target._schema.arguments}
    return {
        name: float(value)
        for name, value in given(node).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if kinds[name] in ("number", "Optional[number]", "Tensor") or name in values
    }


def mutated_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the graph nodes whose tensors the node's schema says it writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.op != "call_function":
        return []
    written = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = (
                node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            )
            written += [item for item in _flat(value) if isinstance(item, fx.Node)]
    return written


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def functional_overload(node: fx.Node) -> Any | None:
    """Return the functional twin of an in-place op (``add_.Tensor`` -> ``add.Tensor``), or None."""
    name, overload = op_name(node), getattr(node.target, "_overloadname", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, overload, None) if packet is not None else None


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on the same element of the inputs only."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def draws(node: fx.Node) -> bool:
    """Whether the op draws random numbers; a dropout in evaluation or of probability 0 does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    options = given(node)
    trains = options.get("train", options.get("training"))
    return trains is not False and 0 not in map(options.get, ("p", "dropout", "dropout_p"))


def scan_is_differentiable() -> bool:
    """Whether torch's gradient of ``scan`` is right: in 2.11 it is not, in 2.13 it is."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


def rename(node: fx.Node, name: str) -> None:
    """Give a node a name made from any text; torch adds a number if the name is taken."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    node._rename(f"_{name}" if name[:1].isdigit() or not name else name)
    if node.op == "placeholder":
        node.target = node.name  # the argument's name in generated code


def functionalized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with in-place ops replaced by functional ones, below autograd.

    The C++ half of functionalization: a dispatch mode around it sees functional ops on plain
    tensors. Below the Python half only torch's own modes can sit.
    """

    def wrapped(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch._enable_functionalization(reapply_views=True)
        try:
            results = function(*[torch._to_functional_tensor(value) for value in inputs])
        finally:
            torch._disable_functionalization()
        for value in results:
            torch._sync(value)  # type: ignore[attr-defined, no-untyped-call]
        return tuple(torch._from_functional_tensor(value) for value in results)

    return wrapped


def autograd_number() -> tuple[int, bool]:
    """Return autograd's number for the op now running, and whether that op is in backward.

    Autograd numbers its nodes as forward makes them; backward of an op runs under its number.
    """
    node = torch._C._current_autograd_node()
    if node is not None:
        return node._sequence_nr(), True
    return torch.autograd._get_sequence_nr() - 1, False


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Put a text into the structured log that ``TORCH_TRACE`` asks for, which ``tlparse`` shows.

    Args:
        name: of its file there.
        text: asked for only if there is such a log.
    """
    encoding = "json" if name.endswith(".json") else "string"
    trace_structured_artifact(name, encoding, text)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Let learning-rate schedulers know that the optimizer has stepped; they warn otherwise.

    The mark is the one that the wrapper sets which a scheduler puts around ``optimizer.step``.
    """
    optimizer._opt_called = True  # type: ignore[attr-defined]


def version_of(*tensors: torch.Tensor) -> int:
    """Return how often PyTorch's operations have written to the tensors in place."""
    return sum([tensor._version for tensor in tensors])  # faster than a generator


def uncompile(module: torch.nn.Module) -> None:
    """Undo ``module.compile()``, for which torch has no word."""
    module._compiled_call_impl = None


def unflatten(leaves: list[Any], structure: Any) -> Any:
    """Return a nest of a structure that `torch.export` has noted, around other leaves."""
    return tree_unflatten(leaves, structure)


def python_dispatcher() -> AbstractContextManager[Any]:
    """Let kernels written in Python go first: some in C++ take no symbol for a size."""
    manager: AbstractContextManager[Any] = enable_python_dispatcher()
    return manager


@contextmanager
def guards_named_by(foreign: Container[str]) -> Iterator[None]:
    """Let each guard on a size name the line that asked for it: the first in no file of these."""
    asked = "uninteresting_files"
    before = getattr(symbolic_shapes, asked)
    setattr(symbolic_shapes, asked, lambda: foreign)
    try:
        yield
    finally:
        setattr(symbolic_shapes, asked, before)


def node_of_expression(expression: Any, symbols: Mapping[Any, fx.Node]) -> fx.Node:
    """Add a sympy expression of sizes to their graph; return the node of its value."""
    proxies = {symbol: fx.Proxy(node) for symbol, node in symbols.items()}
    made: fx.Proxy = sympy_interp(PythonReferenceAnalysis, proxies, expression)
    return made.node
