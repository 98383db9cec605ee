"""Record the ATen ops that a function calls on fake tensors, as an FX graph.

`make_fx` does the same for any program, with proxies around each tensor. It is slower, and most of
the time before lowering is recording. Only `make_fx` supports tensors that are not inputs, and
branches on symbolic shapes.

A number that the function reads from a tensor (``.item()``) stays a number: arithmetic on it is
recorded as Python operators.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from mpcompile.errors import CannotCapture
from mpcompile.program.control_flow import with_graphs
from mpcompile.program.marks import BACKWARD, MADE_BY, PLANNED
from mpcompile.step.recorded_number import (
    TAKE_TENSORS,
    Numbers,
    is_known,
    is_recorded,
    node_of_number,
    number_of,
    truth_of,
)
from mpcompile.step.recorded_size import RecordedSizes
from mpcompile.torch_private.fake_results import known_result
from mpcompile.torch_private.graphs import copy_graph, module_of
from mpcompile.torch_private.ops import mutated_inputs, op_name
from mpcompile.torch_private.tensors import FakeTensorMode, device_of, is_fake
from mpcompile.torch_private.tracing import (
    DataDependent,
    DispatchMode,
    autograd_number,
    functionalized,
    keep_node_meta,
)

Results = tuple[torch.Tensor, ...]


def record(
    function: Callable[..., Results],
    inputs: Sequence[torch.Tensor],
    mode: FakeTensorMode,
    numbers: Numbers | None = None,
) -> fx.GraphModule:
    """Run a function once and return its ops as a graph without mutation.

    Autograd inside the function is recorded too. Each node carries its fake result in
    ``meta["val"]``; ``stack_trace``, ``nn_module_stack``, ``planned`` and ``pass`` of a graph that
    the function interprets are kept, and nodes of backward get those of the forward op that they
    come from.

    Args:
        function: takes the inputs flat, returns a flat tuple of tensors. It may change
            only tensors in place that it made itself.
        inputs: fake tensors.
        mode: the mode of the inputs.
        numbers: handles the numbers that the function reads from tensors.

    Raises:
        CannotCapture: the function uses a tensor that is neither an input nor made by it.
    """
    numbers = numbers or Numbers()
    first = _record_until_write(function, inputs, mode, numbers)
    if first is not None:
        return first
    # Functionalization wraps each tensor, so it is used only if it is needed.
    return record_with(Recorder, functionalized(function), inputs, mode, numbers)


def _record_until_write(
    function: Callable[..., Results],
    inputs: Sequence[torch.Tensor],
    mode: FakeTensorMode,
    numbers: Numbers,
) -> fx.GraphModule | None:
    """Record a function; return None as soon as an op needs functionalization."""
    recorder = _UntilWrite(fx.Graph(), numbers)
    try:
        module = _recorded(recorder, function, inputs, mode)
    except BaseException:
        # torch or the function can make another error of `_Stop`.
        if not recorder.stopped:
            raise
        return None
    return None if recorder.stopped else module


def record_with(
    kind: type[Recorder],
    function: Callable[..., Results],
    inputs: Sequence[torch.Tensor],
    mode: FakeTensorMode,
    numbers: Numbers,
) -> fx.GraphModule:
    """Run a function once and return its ops as they are, with those that write to tensors.

    Args:
        kind: the class of the recorder.
        function: as for `record`.
        inputs: as for `record`.
        mode: as for `record`.
        numbers: as for `record`.
    """
    return _recorded(kind(fx.Graph(), numbers), function, inputs, mode)


def _recorded(
    recorder: Recorder,
    function: Callable[..., Results],
    inputs: Sequence[torch.Tensor],
    mode: FakeTensorMode,
) -> fx.GraphModule:
    graph = recorder.graph
    arguments = {graph.placeholder(f"arg{index}"): value for index, value in enumerate(inputs)}
    for node, value in arguments.items():
        recorder.note(value, node)
    recorder.sizes = RecordedSizes(graph, arguments)
    with mode, recorder, keep_node_meta():
        results = function(*inputs)
    graph.output(tuple(recorder.node_of(value) for value in results))
    return module_of(graph, recorder.constants)


def _is_fused_dropout(node: fx.Node) -> bool:
    """Whether torch chose a dropout, because of a dispatch mode, that it would not use on a CPU.

    It draws other numbers than eager PyTorch; under functionalization torch chooses as in eager.
    """
    return op_name(node) == "native_dropout" and node.meta["val"][0].device.type == "cpu"


def _plain(value: Any) -> Any:
    return 1.0 if isinstance(value, torch.SymFloat) and is_recorded(value) else value


def _constant(value: Any) -> Any:
    is_option = isinstance(value, torch.SymFloat) and is_recorded(value) and is_known(value)
    return float(value) if is_option else value


class Recorder(DispatchMode):
    """Sees each op below autograd and functionalization."""

    supports_higher_order_operators = True

    def __init__(self, graph: fx.Graph, numbers: Numbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self._numbers = numbers
        # The tensor is kept so that no other tensor gets its id.
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._origins = Origins()
        self.constants = torch.nn.Module()
        self.sizes: RecordedSizes

    def note(self, value: torch.Tensor, node: fx.Node) -> None:
        """Remember which node made a tensor."""
        node.meta["val"] = value
        if node.op != "placeholder":
            self.sizes.note(value, node)
        self._nodes[id(value)] = (value, node)

    def node_of(self, value: torch.Tensor) -> fx.Node:
        """Return the node that made a tensor."""
        if id(value) not in self._nodes and value.dim() == 0 and not is_fake(value):
            # Indexing makes tensors of Python numbers without asking the dispatcher.
            name = f"constant{len(list(self.constants.buffers()))}"
            self.constants.register_buffer(name, value)
            self.note(value, self.graph.get_attr(name))
        if id(value) not in self._nodes:
            raise CannotCapture(
                f"the program uses a tensor of shape {list(value.shape)} that is not an input, "
                "a parameter or a buffer, and is not computed from one",
                fix="register the tensor with register_buffer",
            )
        return self._nodes[id(value)][1]

    def node_read(self, value: torch.Tensor) -> fx.Node:
        """Return the node that the op which runs now reads for a tensor."""
        return self.node_of(value)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        if func is torch.ops.prim.device.default:  # called several times per op
            return device_of(args[0])
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._number(func, args[0])
        args = with_graphs(func, args)
        if self._is_foreign((*args, *kwargs.values())):
            return func(*args, **kwargs)
        if getattr(func, "overloadpacket", func).__name__ not in TAKE_TENSORS:
            args, kwargs = fx.node.map_aggregate((args, kwargs), _constant)
        # No shape depends on a number, so the fake result is the same for every number.
        result = known_result(func, args, kwargs)
        if result is None:
            plain = fx.node.map_aggregate((args, kwargs), _plain)
            result = func(*plain[0], **plain[1])
        values = result if isinstance(result, list | tuple) else (result,)
        if not any(isinstance(value, torch.Tensor) for value in values):
            return result  # a question about a tensor, such as its device
        if func is torch.ops.aten.detach.default:  # without mutation an alias does nothing
            self._nodes[id(result)] = (result, self.node_of(args[0]))
            return result
        node = self.graph.create_node(
            "call_function",
            func,
            fx.node.map_aggregate(args, self._argument),
            fx.node.map_aggregate(kwargs, self._argument) if kwargs else None,
            name=getattr(func, "overloadpacket", func).__name__,
        )
        node.meta.update(self._origins.now())
        if values is result:
            node.meta["val"] = result
            for position, value in enumerate(values):
                if isinstance(value, torch.Tensor):
                    item = self.graph.call_function(operator.getitem, (node, position))
                    item.meta.update(node.meta)
                    self.note(value, item)
        else:
            self.note(result, node)
        self.made(node)
        return result

    def made(self, node: fx.Node) -> None:
        """Look at the node of an op that has run; a subclass can stop here."""

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.GraphModule):
            return self._graph_inside(value)
        if isinstance(value, torch.SymInt) or (
            isinstance(value, torch.SymFloat) and not is_recorded(value)
        ):
            return self.sizes.node_of(value)
        if isinstance(value, torch.SymFloat):
            return node_of_number(value)
        return self.node_read(value) if isinstance(value, torch.Tensor) else value

    def _is_foreign(self, arguments: tuple[Any, ...]) -> bool:
        """Whether an op reads tensors, but none of the recorded program's.

        To differentiate a loop, torch makes its own tensors while it inspects the loop's body.
        """
        tensors: list[torch.Tensor] = []
        fx.node.map_aggregate(
            arguments, lambda a: tensors.append(a) if isinstance(a, torch.Tensor) else None
        )
        return bool(tensors) and all(is_fake(t) and id(t) not in self._nodes for t in tensors)

    def _graph_inside(self, graph: fx.GraphModule) -> fx.Node:
        """Return a node that names a copy of a graph that an op such as ``cond`` calls."""
        name = f"graph_{len(list(self.constants.children()))}"
        self.constants.add_module(name, copy_graph(graph))
        return self.graph.get_attr(name)

    def _number(
        self, func: Any, tensor: torch.Tensor
    ) -> torch.SymFloat | torch.SymBool | torch.SymInt:
        truth = tensor.dtype is torch.bool
        if not (truth or tensor.is_floating_point()):
            return self._integer(func, tensor)
        node = self.graph.create_node(
            "call_function", func, (self.node_of(tensor),), name="_local_scalar_dense"
        )
        make = truth_of if truth else number_of
        node.meta["val"] = number = make(self._numbers, self.graph, node)
        return number

    def _integer(self, func: Any, tensor: torch.Tensor) -> torch.SymInt:
        """Record an integer that the function reads: sizes and indices may depend on it."""
        value = func(tensor)
        if not isinstance(value, torch.SymInt):
            raise DataDependent("an integer read from a tensor")
        node = self.graph.create_node(
            "call_function", func, (self.node_of(tensor),), name="_local_scalar_dense"
        )
        node.meta["val"] = value
        self.sizes.note_number(value, node)
        return value


class _Stop(BaseException):
    """The recording needs functionalization. No ``except Exception`` of a program stops it."""


class _UntilWrite(Recorder):
    """Stops at the first op that writes to a tensor, or that only functionalization records right.

    Attributes:
        stopped: whether there was such an op; then the graph is not whole.
    """

    stopped = False

    def made(self, node: fx.Node) -> None:
        """Stop if the op writes.

        Raises:
            _Stop: it does.
        """
        if mutated_inputs(node) or _is_fused_dropout(node):
            self.stopped = True
            raise _Stop


class Origins:
    """The origin of the op that runs now: for an op of backward, the forward op behind it."""

    def __init__(self) -> None:
        self._meta: dict[int, dict[str, Any]] = {}

    def now(self) -> dict[str, Any]:
        """Return the marks of the interpreted graph for a node of the op that runs now."""
        number, backward = autograd_number()
        if backward:
            return {**self._meta.get(number, {}), BACKWARD.key: True}
        current = fx.traceback.get_current_meta()
        kept = ("stack_trace", "nn_module_stack", PLANNED.key, MADE_BY.key)
        meta: dict[str, Any] = {key: current[key] for key in kept if key in current}
        self._meta.setdefault(number, meta)
        return meta
