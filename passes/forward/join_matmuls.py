"""Join linears that read the same input: query, key and value, or the gates of an MLP.

One large matmul reads its input once and sums that input's gradient in FP32, within the matmul,
instead of adding 16-bit tensors. The weights are joined by a ``cat`` of their 16-bit copies, which
`passes.lay_out_copies` turns into a view of the arena: joining costs nothing in a step. The
gradient of each weight is a slice of the joint gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.rule import Wish
from mpcompile.program.casts import is_cast, source_of
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.arena import TILE, ArenaPosition
from mpcompile.step.graph import call
from mpcompile.torch_private.ops import given, is_view, op_name

_ATEN = torch.ops.aten
_LINEAR = _ATEN.linear.default
_ANY_STRIDES = frozenset(
    "reshape view transpose permute t flatten unflatten unsqueeze squeeze slice select chunk split "
    "split_with_sizes unbind expand contiguous alias detach narrow".split()
)
"""Views that also work on a part of a row, if a ``view`` becomes a ``reshape``."""


@dataclass
class _Group:
    """Linears that may become one.

    Attributes:
        members: in the graph's order; all read the same input.
        downstream: nodes that depend on a member.
    """

    members: list[fx.Node]
    downstream: set[fx.Node] = field(default_factory=set)


@dataclass(frozen=True)
class JoinMatmuls:
    """Join 16-bit linears.

    A linear is joined with an earlier one of the same input, unless a Tensor-Core op between them
    depends on the earlier one: then the two results are needed far apart and should not live
    equally long. A linear is not joined if its weight has another reader, is not trained, or
    cannot be next to the others without a gap, or if it would make the rows of another unaligned.

    Attributes:
        positions: per placeholder of a trained weight its position in an arena.

    Example:
        >>> class Two(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.q, self.k = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        ...     def forward(self, x):
        ...         return self.q(x), self.k(x)
        ...
        >>> names = ("p_model_q_weight", "p_model_k_weight")
        >>> positions = dict.fromkeys(names, ArenaPosition("arena0", 0, True))
        >>> before_and_after(JoinMatmuls(positions), forward(Two(), f32(2, 8)))
        - linear  f16[2,8]  linear batch_0_f16 p_model_q_weight_f16
        - linear_1  f16[2,8]  linear batch_0_f16 p_model_k_weight_f16
        + cat_default  f16[16,8]  cat [p_model_q_weight_f16,p_model_k_weight_f16]
        + linear_default  f16[2,16]  linear batch_0_f16 cat_default None
        + split_with_sizes_default  tuple  split_with_sizes linear_default [8,8] -1
        + getitem  f16[2,8]  getitem split_with_sizes_default 0
        + getitem_1  f16[2,8]  getitem split_with_sizes_default 1
        - linear_f32  f32[2,8]  _to_copy linear dtype=f32
        + linear_f32  f32[2,8]  _to_copy getitem dtype=f32
        - linear_1_f32  f32[2,8]  _to_copy linear_1 dtype=f32
        + linear_1_f32  f32[2,8]  _to_copy getitem_1 dtype=f32
    """

    positions: Mapping[str, ArenaPosition]

    def __call__(self, module: fx.GraphModule) -> int:
        """Rewrite a forward graph that has its casts; return the number of linears joined."""
        joined = 0
        for group in self._groups(module.graph):
            _join(module.graph, group)
            joined += len(group)
        return joined

    def _groups(self, graph: fx.Graph) -> Iterator[list[fx.Node]]:
        """Yield the groups of two or more."""
        pending: dict[object, _Group] = {}
        found: list[_Group] = []
        for node in graph.nodes:
            for key, group in list(pending.items()):
                if group.downstream.intersection(node.all_input_nodes):
                    group.downstream.add(node)
                    if _is_heavy(node):
                        del pending[key]
            weight = self._weight(node)
            if weight is not None:
                key = (node.args[0], self.positions[weight.name].arena, node.meta["val"].dtype)
                if key not in pending:
                    found.append(pending.setdefault(key, _Group([])))
                pending[key].members.append(node)
                pending[key].downstream.add(node)
        yield from (group.members for group in found if len(group.members) > 1)

    def _weight(self, node: fx.Node) -> fx.Node | None:
        """Return the master of a linear's weight if the linear can be joined with others."""
        if node.target is not _LINEAR or node.meta["val"].dtype not in NARROW:
            return None
        _, copy, bias = arguments_of_linear(node)
        if not _is_copy(copy) or (bias is not None and not _is_copy(bias)):
            return None
        weight = source_of(copy)
        fits = (
            weight.name in self.positions
            and len(weight.users) == len(copy.users) == 1
            and copy.meta["val"].dim() == 2
            and copy.meta["val"].shape[0] % TILE == 0
            and self.positions[weight.name].room == 0
            and takes_strides(node)
        )
        return weight if fits else None


def _is_heavy(node: fx.Node) -> bool:
    rule = TORCH_RULES.get(op_name(node))
    return rule is not None and rule.wish is Wish.HALF


def arguments_of_linear(linear: fx.Node) -> tuple[Any, Any, Any]:
    """Return a linear's input, weight and bias."""
    options = given(linear)
    return options["input"], options["weight"], options["bias"]


def _is_copy(node: fx.Node) -> bool:
    return is_cast(node) and source_of(node).op == "placeholder"


def takes_strides(node: fx.Node) -> bool:
    """Whether all views of a node's result also work on a part of wider rows."""
    return all(op_name(view) in _ANY_STRIDES for view in _views(node))


def allow_strides(node: fx.Node) -> None:
    """Prepare the views of a node's result for wider rows: a ``view`` may need to copy."""
    for view in _views(node):
        if view.target is _ATEN.view.default:
            view.target = _ATEN.reshape.default


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the views of a node's result, and views of those."""
    for user in node.users:
        if is_view(user) or op_name(user) == "getitem":
            yield user
            yield from _views(user)


def _join(graph: fx.Graph, members: list[fx.Node]) -> None:
    first = members[0]
    weights = [arguments_of_linear(node)[1] for node in members]
    biases = [arguments_of_linear(node)[2] for node in members]
    sizes = [node.meta["val"].shape[-1] for node in members]
    for copy in dict.fromkeys([*weights, *biases]):
        if copy is not None and first < copy:  # it reads an input of the graph only
            first.prepend(copy)
    with graph.inserting_before(first):
        weight = call(graph, _ATEN.cat.default, weights)
        bias = _joined_bias(graph, weight, biases, sizes)
        whole = call(graph, _LINEAR, first.args[0], weight, bias)
        parts = call(graph, _ATEN.split_with_sizes.default, whole, sizes, -1)
        items = [
            graph.call_function(operator.getitem, (parts, index)) for index in range(len(sizes))
        ]
    for node in (weight, bias, whole, parts):
        if node is not None:
            node.meta = {**first.meta, "val": node.meta["val"]}
    for old, new, value in zip(members, items, parts.meta["val"], strict=True):
        allow_strides(old)
        new.meta = {**old.meta, "val": value}
        old.replace_all_uses_with(new)
        graph.erase_node(old)


def _joined_bias(
    graph: fx.Graph, weight: fx.Node, biases: list[Any], sizes: list[int]
) -> fx.Node | None:
    """Return the biases side by side, zeros for a missing one; None if all are missing."""
    if all(bias is None for bias in biases):
        return None
    parts = [
        call(graph, _ATEN.new_zeros.default, weight, [size]) if bias is None else bias
        for bias, size in zip(biases, sizes, strict=True)
    ]
    return call(graph, _ATEN.cat.default, parts)
