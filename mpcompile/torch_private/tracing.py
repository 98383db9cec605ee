"""Private tools to record a program: dispatch modes, autograd, sizes that are symbols."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._higher_order_ops.utils import materialize_as_graph
from torch._logging._internal import trace_structured_artifact
from torch.fx.experimental import symbolic_shapes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    tree_flatten,
    tree_is_leaf,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
)
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

_LOOPS = str(Path(torch.__file__).parent / "_higher_order_ops")


class DispatchMode(TorchDispatchMode):
    """Sees every op that reaches the dispatcher below autograd; see `mpcompile.step.record`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from guarding each dispatch against dynamo, which never runs here."""
        return False


DataDependent: type[Exception] = symbolic_shapes.GuardOnDataDependentSymNode
"""The exception of a trace when Python control flow reads a tensor's value."""


def keep_node_meta() -> AbstractContextManager[Any]:
    """Carry ``stack_trace`` and ``nn_module_stack`` of an interpreted graph into a new trace."""
    return torch.fx.traceback.preserve_node_meta()


def traced(function: Callable[..., Any], inputs: Sequence[Any]) -> fx.GraphModule:
    """Trace a function on fake tensors to a graph, hidden from the modes around it.

    torch does the same with the functions that its own autograd gives to control-flow ops.
    """
    module: fx.GraphModule = materialize_as_graph(function, tuple(inputs))
    return module


def functionalized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with in-place ops replaced by functional ones, below autograd.

    The C++ half of functionalization: a dispatch mode around it sees functional ops on plain
    tensors. Only torch's own modes can be below the Python half.
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
    """Write a text to the structured log of ``TORCH_TRACE``, which ``tlparse`` shows.

    Args:
        name: the name of its file there.
        text: called only if there is such a log.
    """
    encoding = "json" if name.endswith(".json") else "string"
    trace_structured_artifact(name, encoding, text)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Mark that the optimizer has stepped; otherwise learning-rate schedulers warn.

    A scheduler wraps ``optimizer.step``, and that wrapper sets the same mark.
    """
    optimizer._opt_called = True  # type: ignore[attr-defined]


def compile_guarded(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function as ``torch.compile`` does, and again when modules get or lose hooks.

    By default Dynamo puts no guards on hooks, and drops those that are registered after a graph
    was made.

    Args:
        function: calls modules.
        options: of ``torch.compile``.
    """
    return _under({"skip_nnmodule_hook_guards": False}, torch.compile(function, **options))


def _under(settings: Mapping[str, Any], made: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that runs, and is compiled, under settings of Dynamo."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(dict(settings)):
            return made(*args, **kwargs)

    return guarded


def compile_call(module: torch.nn.Module, **options: Any) -> None:
    """Compile each call of a module, with its hooks, also if the module's class is torch's own.

    ``module.compile()`` compiles the frames that the call enters, and Dynamo skips frames of
    torch's files: no line of a ``Sequential`` of torch's layers would be compiled.

    Args:
        module: its weights, hooks and ``state_dict`` do not change.
        options: of ``torch.compile``.
    """

    def whole_call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    # Dynamo counts graphs per code object, and stops compiling after eight. Each module gets its
    # own code object, because one that all modules share would reach this limit.
    whole_call.__code__ = whole_call.__code__.replace()
    module._compiled_call_impl = compile_guarded(whole_call, **options)


def uncompile(module: torch.nn.Module) -> None:
    """Undo `compile_call` and ``module.compile()``, for which torch has no function."""
    module._compiled_call_impl = None


def keep_missing_gradients() -> None:
    """Let Dynamo leave autograd Functions that call ``ctx.set_materialize_grads`` as they are.

    Dynamo ignores the call (torch 2.11 to 2.15, with every backend): the compiled backward gets
    zeros where the program's own gets None, and gives wrong gradients.
    """
    called: Any = torch.autograd.function.FunctionCtx.set_materialize_grads
    called._torchdynamo_disable = True


def unflatten(leaves: list[Any], structure: Any) -> Any:
    """Return a tree of a structure that `torch.export` has recorded, with other leaves."""
    return tree_unflatten(leaves, structure)


def children(structure: Any) -> list[Any]:
    """Return the structures of the parts of a tuple, list or dict."""
    return list(
        structure.children() if hasattr(structure, "children") else structure.children_specs
    )


@contextmanager
def truth_answered(answer: Callable[[FrameType], bool | None]) -> Iterator[None]:
    """Let a function answer ``bool(tensor)`` inside ``with``; None: the tensor answers itself.

    Args:
        answer: takes the frame that asks.
    """

    def truth(tensor: torch.Tensor) -> bool:
        said = answer(sys._getframe(1))
        return torch._C.TensorBase.__bool__(tensor) if said is None else said

    kind: Any = torch.Tensor
    kind.__bool__ = truth
    try:
        yield
    finally:
        del kind.__bool__


def one_level(value: Any) -> tuple[list[Any], Any, Callable[[list[Any]], Any]] | None:
    """Open a container of torch's trees by one level.

    Returns:
        Its parts, what equal containers have in common, and a function that makes one of other
        parts; None if torch knows no such container.
    """
    if tree_is_leaf(value):
        return None
    parts, structure = tree_flatten(value, is_leaf=lambda item: item is not value)
    return parts, str(structure), lambda parts: tree_unflatten(parts, structure)


_ONE = tree_flatten(None)[1]


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves of a tree, and its structure for `unflatten`."""
    return ([tree], _ONE) if isinstance(tree, torch.Tensor) else tree_flatten(tree)


@contextmanager
def autograd_inside_an_op() -> Iterator[None]:
    """Turn autograd on inside the kernel of a custom op, which runs below it."""
    keys = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
    before = [torch._C._dispatch_tls_is_dispatch_key_excluded(key) for key in keys]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for key, excluded in zip(keys, before, strict=True):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, excluded)


@contextmanager
def without_backward(error: Exception) -> Iterator[None]:
    """Raise an error inside ``with`` when the program asks autograd for gradients in any way.

    To trace a loop, torch itself asks for the gradients of its body.
    """
    autograd: Any = torch.autograd
    before = autograd._engine_run_backward

    def refuse(*args: Any, **kwargs: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(_LOOPS):
                return before(*args, **kwargs)
            frame = frame.f_back
        raise error

    autograd._engine_run_backward = refuse
    try:
        yield
    finally:
        autograd._engine_run_backward = before


def vmap_is_in(node: fx.Node) -> bool:
    """Whether a node of an exported graph is a part of ``torch.func.vmap``."""
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Return a tree with a function of each tensor instead of the tensor."""
    return tree_map_only(torch.Tensor, function, tree)


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of a result in the order in which `torch.export` has them."""
    found: list[Any] = tree_leaves(tree)
    return found


def python_dispatcher() -> AbstractContextManager[Any]:
    """Prefer kernels written in Python: some in C++ accept no symbol for a size."""
    manager: AbstractContextManager[Any] = enable_python_dispatcher()
    return manager


@contextmanager
def guards_named_by(foreign: Container[str]) -> Iterator[None]:
    """Name in each guard on a size the line that needs it: the first frame outside these files."""
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
