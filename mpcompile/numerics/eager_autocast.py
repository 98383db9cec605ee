"""The tensors that eager ``torch.autocast`` computes, under keys that step graph nodes have too."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mpcompile.numerics.lockstep import Moment, is_float
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.program.capture import Forward
from mpcompile.program.marks import BACKWARD, MADE_BY, PLANNED
from mpcompile.program.random_state import drawn_again
from mpcompile.step.record import Origins
from mpcompile.step.slots import Role
from mpcompile.torch_private.ops import op_name
from mpcompile.torch_private.tracing import DispatchMode, keep_node_meta


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a tensor, the same in every run of one program.

    Attributes:
        planned: the forward op whose forward or backward computes the tensor.
        backward: whether backward computes it.
        op: the name of the ATen op that makes it.
        count: the number of equal ops before it for the same forward op.
        item: the index of the tensor among the op's results.
    """

    planned: str
    backward: bool
    op: str
    count: int
    item: int


def gradient_key(weight: str) -> Key:
    """Return the key of a weight's gradient; it does not depend on the op that makes it."""
    return Key(weight, True, "", 0, 0)


def keys_of(graph: fx.Graph) -> dict[fx.Node, Key]:
    """Return the keys of a gradient graph's tensors; tensors made by a pass have no key."""
    counts: Counter[tuple[str, bool, str]] = Counter()
    several: dict[fx.Node, Key] = {}
    found: dict[fx.Node, Key] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node not in PLANNED or MADE_BY.get(node):
            continue
        source = several.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if node.target is operator.getitem and source is not None:
            found[node] = replace(source, item=int(node.args[1]))
            continue
        kind = (PLANNED[node], node in BACKWARD, op_name(node))
        kept = found if isinstance(node.meta.get("val"), torch.Tensor) else several
        kept[node] = Key(*kind, counts[kind], 0)
        counts[kind] += 1
    return found


def autocast_values(
    forward: Forward, moment: Moment, wanted: Iterable[Key]
) -> dict[Key, torch.Tensor]:
    """Run forward under autocast and backward outside it, as PyTorch documents it, on real tensors.

    Args:
        forward: the program in FP32, without casts.
        moment: the step's inputs; the loss scale is the seed of backward.
        wanted: the keys of the tensors to keep.

    Returns:
        The tensors by key, and each weight's gradient, times the loss scale, by `gradient_key`.
    """
    values = {item.name: item.value for item in forward.inputs}
    values |= {name: value for name, value in moment.values.items() if name in values}
    trained = [
        name.removeprefix("grad.")
        for name, slot in moment.step.slots.items()
        if slot.role is Role.GRADIENT
    ]
    leaves = {name: values[name].detach().clone().requires_grad_() for name in trained}
    inputs = [leaves.get(item.name, values[item.name]) for item in forward.inputs]
    device = inputs[0].device.type
    narrow = next(
        (s.dtype for s in moment.step.slots.values() if s.role in (Role.WORKING, Role.SHARED)),
        torch.float16,
    )
    for node in forward.module.graph.nodes:
        PLANNED.setdefault(node, node.name)
    noting = _Noting(frozenset(wanted))
    with drawn_again(moment.random), noting, keep_node_meta(), torch.enable_grad():
        with torch.autocast(device, dtype=narrow):
            *_, loss = fx.Interpreter(forward.module).run(*inputs, enable_io_processing=False)
        seed = torch.ones_like(loss) * moment.values.get(SCALE, 1.0)
        gradients = torch.autograd.grad(loss, list(leaves.values()), seed, allow_unused=True)
    made = noting.found
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            made[gradient_key(name)] = gradient
    return made


class _Noting(DispatchMode):
    """A dispatch mode that keeps the results of ops, below autograd and autocast."""

    def __init__(self, wanted: frozenset[Key]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wanted = wanted
        self._origins = Origins()
        self._counts: Counter[tuple[str, bool, str]] = Counter()
        self.found: dict[Key, torch.Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        meta = self._origins.now()
        name = getattr(func, "overloadpacket", func).__name__
        kind = (meta.get(PLANNED.key, ""), BACKWARD.key in meta, name)
        for index, value in _tensors(result):
            key = Key(*kind, self._counts[kind], index)
            if key in self._wanted:
                self.found[key] = value.detach().clone()  # eager ops may overwrite the result
        self._counts[kind] += 1
        return result


def _tensors(result: Any) -> Iterator[tuple[int, torch.Tensor]]:
    values = result if isinstance(result, list | tuple) else (result,)
    return ((k, value) for k, value in enumerate(values) if is_float(value))
