"""Writes through views: ``x[:, 1:] = y`` becomes ``x = slice_scatter(x, y, 1, 1)``.

The op that writes becomes its functional twin. Its result is put back into the tensor that the view
was taken of, view by view, and views that are read later are taken again. Autograd computes the
same gradients, because a write into a view is differentiated so in eager PyTorch, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private.ops import functional_overload, given, is_view, mutated_inputs

_ATEN = torch.ops.aten

_Call = tuple[Any, tuple[Any, ...]]
_PutBack = Callable[[fx.Node, dict[str, Any], fx.Node], _Call]
"""From the viewed tensor, the view's arguments and the written view: the op that puts it back."""


def _scatter(op: Any, *names: str) -> _PutBack:
    return lambda whole, named, part: (op, (whole, part, *(named[name] for name in names)))


def _permuted(_: fx.Node, named: dict[str, Any], part: fx.Node) -> _Call:
    count = len(named["dims"])
    order = [dim % count for dim in named["dims"]]
    return _ATEN.permute.default, (part, [order.index(dim) for dim in range(count)])


def _viewed(whole: fx.Node, _: dict[str, Any], part: fx.Node) -> _Call:
    return _ATEN.reshape.default, (part, list(whole.meta["val"].shape))


_PUT_BACK: dict[Any, _PutBack] = {
    _ATEN.slice.Tensor: _scatter(_ATEN.slice_scatter.default, "dim", "start", "end", "step"),
    _ATEN.select.int: _scatter(_ATEN.select_scatter.default, "dim", "index"),
    _ATEN.diagonal.default: _scatter(_ATEN.diagonal_scatter.default, "offset", "dim1", "dim2"),
    _ATEN.transpose.int: lambda _, named, part: (
        _ATEN.transpose.int,
        (part, named["dim0"], named["dim1"]),
    ),
    _ATEN.t.default: lambda _, __, part: (_ATEN.t.default, (part,)),
    _ATEN.permute.default: _permuted,
    _ATEN.unsqueeze.default: lambda _, named, part: (
        _ATEN.squeeze.dim,
        (part, named["dim"]),
    ),
    _ATEN.alias.default: lambda _, __, part: (_ATEN.alias.default, (part,)),
    _ATEN.view.default: _viewed,
    _ATEN.squeeze.default: _viewed,
    _ATEN.squeeze.dim: _viewed,
    _ATEN.squeeze.dims: _viewed,
}
"""Views that share memory with their tensor in any case."""


def source_of(node: fx.Node) -> fx.Node | None:
    """Return the tensor that an op's result may share memory with; None if there is none."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        whole = node.args[0]
        return whole if isinstance(whole, fx.Node) and is_view(whole) else None
    written = mutated_inputs(node)
    if written:
        return written[0]
    return node.all_input_nodes[0] if is_view(node) and node.all_input_nodes else None


def root_of(node: fx.Node, whole: Collection[fx.Node] = ()) -> fx.Node:
    """Return the tensor that a view was taken of.

    Args:
        node: the view.
        whole: new values of whole tensors, which `write` has made; they are no views.
    """
    return _chain(node, whole)[0]


def can_write(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether `write` can make an op functional that writes to one tensor.

    Args:
        node: the op.
        order: the place of each node in the graph.
    """
    written = mutated_inputs(node)
    if len(written) != 1 or functional_overload(node) is None:
        return False
    (target,) = written
    while (source := source_of(target)) is not None:
        if not mutated_inputs(target) and not _is_known(target):
            return False
        target = source
    return all(_is_known(alias) for alias in _read_later(target, order[node], order))


def _is_known(view: fx.Node) -> bool:
    if _PUT_BACK.get(view.target) is _viewed:
        whole = view.args[0]
        return isinstance(whole, fx.Node) and all(
            isinstance(size, int) for size in whole.meta["val"].shape
        )
    return view.target in _PUT_BACK


def _read_later(root: fx.Node, since: float, order: dict[fx.Node, int]) -> Iterator[fx.Node]:
    """Yield the views of a tensor that are older than a moment and are read after it."""
    for user in root.users:
        if user is root or source_of(user) is not root or mutated_inputs(user):
            continue
        if order.get(user, since) < since:
            deeper = list(_read_later(user, since, order))
            if deeper or any(order.get(reader, -1) > since for reader in user.users):
                yield user
                yield from deeper


def write(
    node: fx.Node, order: dict[fx.Node, int], whole: Collection[fx.Node]
) -> tuple[fx.Node, list[fx.Node]]:
    """Make an op functional for which `can_write` holds.

    Args:
        node: the op; it becomes its functional twin.
        order: the place of each node in the graph.
        whole: the new values that earlier calls have returned.

    Returns:
        The new value of the tensor that the written view was taken of, and all new nodes.
    """
    (target,) = mutated_inputs(node)
    twin = functional_overload(node)
    assert twin is not None
    node.target = twin
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
    since, graph = order[node], node.graph
    made: list[fx.Node] = []

    def add(call: _Call, like: fx.Node) -> fx.Node:
        with graph.inserting_after(made[-1] if made else node):
            new = graph.call_function(*call)
        new.meta = {**node.meta, "val": like.meta["val"]}
        made.append(new)
        return new

    root, *views = _chain(target, whole)
    part = node
    for source, view in list(pairwise((root, *views)))[::-1]:
        part = add(_PUT_BACK[view.target](source, given(view), part), source)
    fresh = {root: part}
    again = list(_read_later(root, since, order))
    again += [view for view in views if view not in again]
    for old in sorted(again, key=order.__getitem__):
        source = _chain(old, whole)[-2]
        args = tuple(fresh[source] if item is source else item for item in old.args)
        fresh[old] = add((old.target, args), old)
    for old, new in fresh.items():
        later = {user for user in old.users if order.get(user, -1) > since}
        old.replace_all_uses_with(new, delete_user_cb=later.__contains__)
    if fresh[target] is not node:
        first = made[0] if made else None
        node.replace_all_uses_with(fresh[target], delete_user_cb=lambda user: user is not first)
    return part, made


def _chain(node: fx.Node, whole: Collection[fx.Node]) -> list[fx.Node]:
    """Return the tensor that a view was taken of, the views between, and the view."""
    found = [node]
    while found[-1] not in whole and (source := source_of(found[-1])) is not None:
        found.append(source)
    return found[::-1]
