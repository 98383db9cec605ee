"""Derivatives that a program writes itself: custom autograd Functions and hooks.

`torch.export` records the forward pass only, so it drops them. While the program is captured,
`noted` puts a call of ``mpcompile::own_backward`` behind each Function and each hooked tensor. The
call returns its first argument; it names the tensors whose gradients the program computes itself,
and the tensors that this code reads. In the captured graph an `OwnBackward` takes the place of
the op. Under autograd it calls the user's code, so the ops of that code are recorded as backward.

The code sees what it would see in eager PyTorch: FP32 tensors, and gradients without the loss
scale. If the Function's forward has a Tensor Core op in 16 bits, such ops of its backward run in 16
bits too; then its gradients keep the loss scale, without which they could be too small for FP16.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx

from mpcompile.errors import CannotCapture
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import PrecisionClass
from mpcompile.program.casts import CAST
from mpcompile.torch_private.tracing import DataDependent, DispatchMode

Gradients = Sequence[torch.Tensor | None]


@torch.library.custom_op(
    "mpcompile::own_backward",
    mutates_args=(),
    schema="(Tensor[] values, Tensor[] inputs, Tensor[] saved, int key) -> Tensor[]",
)
def _own_backward(
    values: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    saved: Sequence[torch.Tensor],
    key: int,
) -> list[torch.Tensor]:
    del inputs, saved, key
    return [value.clone() for value in values]


@_own_backward.register_fake
def _(
    values: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    saved: Sequence[torch.Tensor],
    key: int,
) -> list[torch.Tensor]:
    del inputs, saved, key
    return [torch.empty_like(value) for value in values]


def _needs_gradient(ctx: Any, *gradients: Any) -> tuple[None, ...]:
    del ctx, gradients
    raise AssertionError("a captured program is differentiated with its OwnBackward")


# With a derivative, the op's results need a gradient during the capture if its inputs need one.
_own_backward.register_autograd(_needs_gradient)
# A hook's call has no reader until `place_hooks`.
fx.node.has_side_effect(torch.ops.mpcompile.own_backward.default)

OP = torch.ops.mpcompile.own_backward.default


@dataclass
class Seed:
    """The number that backward starts from: 1 or the loss scale.

    Attributes:
        value: 0-d FP32; None before backward, or if it is 1.
    """

    value: torch.Tensor | None = None


@dataclass(eq=False)
class OwnBackward:
    """A derivative of the program: in a graph, a callable that returns its first argument.

    Attributes:
        name: of the Function or the hook, for people.
        gradients: the user's code: tensors that it reads, gradients of the values; returns the
            gradients of the inputs.
        dtypes: of the values, then of the tensors that it reads, in the user's program.
        is_hook: whether `inputs` and `values` are the same tensors.
        where: ``file:line`` where the program calls or registers it, or None.
        fp32: whether the Function asks for FP32 (``torch.amp.custom_fwd``).
        complete: whether it is a hook that waits for the sum of all gradients of a weight.
        removed: whether the program has removed the hook again.
        seed: of the backward pass that runs.
    """

    name: str
    gradients: Callable[[Sequence[torch.Tensor], Gradients], Gradients]
    dtypes: tuple[torch.dtype, ...]
    is_hook: bool
    where: str | None = None
    fp32: bool = False
    complete: bool = False
    removed: bool = False
    seed: Seed = field(default_factory=Seed)

    def __post_init__(self) -> None:
        # torch.fx writes a graph's code with the names of what it calls.
        self.__name__ = "own_backward"

    def __call__(
        self,
        values: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        saved: Sequence[torch.Tensor],
        of: str = "",
        narrow: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the values; their gradients go to the inputs through the user's code.

        Args:
            values: the results of the Function, or the hooked tensor.
            inputs: the tensors that get the gradients.
            saved: the tensors that the user's code reads.
            of: the name of the Function or the hook, as the graph's text shows it.
            narrow: the 16-bit dtype in which the code runs Tensor Core ops; None: FP32.
        """
        del of
        counts = len(values), len(inputs)
        results = _Applied.apply(self, narrow, counts, *values, *inputs, *saved)  # type: ignore[no-untyped-call]
        return tuple(results)

    def run(
        self, saved: Sequence[torch.Tensor], gradients: Gradients, narrow: torch.dtype | None
    ) -> Gradients:
        """Run the user's code on tensors of the user's dtypes, without the loss scale."""
        wide, read = self.dtypes[: len(gradients)], self.dtypes[len(gradients) :]
        seed = self.seed.value if narrow is None else None
        given = [
            None if g is None else g.to(dtype) if seed is None else g.to(dtype) / seed
            for g, dtype in zip(gradients, wide, strict=True)
        ]
        values = [value.to(dtype) for value, dtype in zip(saved, read, strict=True)]
        try:
            with _TensorCores(narrow) if narrow is not None else nullcontext():
                made = self.gradients(values, given)
        except DataDependent as error:
            raise CannotCapture(
                f"the backward of {self.name} decides in Python by the value of a tensor",
                self.where,
                "use torch.where instead of if, and no .item()",
            ) from error
        return [None if g is None else g if seed is None else g * seed for g in made]


class _TensorCores(DispatchMode):
    """Runs Tensor Core ops in 16 bits; their results are FP32 again."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        if is_tensor_core(getattr(getattr(func, "overloadpacket", func), "__name__", "")):
            args = fx.node.map_aggregate(args, partial(_to, torch.float32, self._dtype))
            made = func(*args, **(kwargs or {}))
            return fx.node.map_aggregate(made, partial(_to, self._dtype, torch.float32))
        return func(*args, **(kwargs or {}))


def _to(old: torch.dtype, new: torch.dtype, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype is old:
        return CAST(value, dtype=new)
    return value


def is_tensor_core(name: str) -> bool:
    """Whether an op of this name runs on a Tensor Core."""
    rule = TORCH_RULES.get(name)
    return rule is not None and rule.precision_class is PrecisionClass.TENSOR_CORE


def body_of(node: fx.Node) -> set[fx.Node]:
    """Return the ops of a Function's forward, given the node that holds its derivative."""
    body: set[fx.Node] = set()
    if node.target.is_hook:  # type: ignore[union-attr]
        return body
    waiting: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    while waiting:
        each = waiting.pop()
        starts = each.target is torch.ops.aten.detach.default or each.op != "call_function"
        if each not in body and not starts and not isinstance(each.target, OwnBackward):
            body.add(each)
            waiting += each.all_input_nodes
    return body


class _Applied(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        own: OwnBackward,
        narrow: torch.dtype | None,
        counts: tuple[int, int],
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        values, inputs = counts
        ctx.own, ctx.narrow, ctx.values, ctx.inputs = own, narrow, values, inputs
        ctx.save_for_backward(*tensors[values + inputs :])
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in tensors[:values])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        if all(gradient is None for gradient in gradients):
            made: Gradients = [None] * ctx.inputs
        else:
            made = ctx.own.run(saved, gradients, ctx.narrow)
        return (None, None, None, *[None] * ctx.values, *made, *[None] * len(saved))


def place_hooks(graph: fx.Graph, own: Sequence[OwnBackward]) -> None:
    """Put each hook right behind the tensor that it hooks, in front of all its readers.

    A hook gets the sum of all gradients of a tensor, also of readers before its registration. Of
    two hooks of a tensor, the one that was registered first runs first, so it is nearer to the
    readers.

    Args:
        graph: with calls of `OP`.
        own: the derivatives by their keys.

    Raises:
        CannotCapture: a hook reads what the program computes from the hooked tensor before.
    """
    for node in reversed([node for node in graph.nodes if node.target is OP]):
        hook = own[node.args[3]]
        if not hook.is_hook:
            continue
        (tensor,) = node.args[0]
        for item in list(node.users):
            item.replace_all_uses_with(tensor)
            graph.erase_node(item)
        if hook.removed:
            graph.erase_node(node)
            continue
        _move_up(graph, node, hook)
        with graph.inserting_after(node):
            item = graph.call_function(operator.getitem, (node, 0))
        item.meta = {**node.meta, "val": tensor.meta["val"]}
        node.meta = {**node.meta, "val": [tensor.meta["val"]]}
        tensor.replace_all_uses_with(
            item,
            delete_user_cb=lambda user, node=node: user is not node and _passes_gradients(user),
        )


def _move_up(graph: fx.Graph, node: fx.Node, hook: OwnBackward) -> None:
    """Move a hook to the last of the tensors that it takes."""
    order = {each: position for position, each in enumerate(graph.nodes)}
    last = max(node.all_input_nodes, key=order.__getitem__)
    (tensor,) = node.args[0]  # type: ignore[misc, str-unpack]
    readers = filter(_passes_gradients, tensor.users)  # type: ignore[union-attr]
    if any(order[reader] <= order[last] for reader in readers):
        raise CannotCapture(
            f"the hook {hook.name} reads a tensor that is computed from the hooked one before",
            hook.where,
            "register the hook right behind the line that makes its tensor",
        )
    if last.op == "placeholder":
        last = graph.find_nodes(op="placeholder")[-1]
    if order[node] > order[last] + 1:
        last.append(node)


def _passes_gradients(reader: fx.Node) -> bool:
    value = reader.meta.get("val")
    exact = isinstance(value, torch.Tensor) and not value.is_floating_point()
    return reader.target is not torch.ops.aten.detach.default and not exact


def with_derivatives(graph: fx.Graph, own: Sequence[OwnBackward]) -> None:
    """Let a graph call the derivatives themselves in place of `OP`."""
    for node in graph.find_nodes(op="call_function", target=OP):
        values, inputs, saved, key = node.args
        with graph.inserting_before(node):
            call = graph.call_function(own[key], (values, inputs, saved), {"of": own[key].name})
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        name = node.name
        graph.erase_node(node)
        call.name = name  # plans name nodes
