"""Share casts, cancel lossless pairs, move casts through views, make constants narrow at once.

Only 16 bits -> FP32 -> the same 16 bits is a lossless pair. FP32 -> 16 bits -> FP32 rounds and is
never removed.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from mpcompile.program.casts import is_cast, source_of, widens
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.marks import BACKWARD
from mpcompile.torch_private.ops import is_view, op_name

_FILLS = ("zeros", "ones", "full")


def clean_casts(module: fx.GraphModule) -> int:
    """Clean up until no rule applies; return the number of casts removed or moved.

    Example:
        >>> def program(x):
        ...     return x.float().view(4).half() + 1
        ...
        >>> before_and_after(clean_casts, graph(program, x=f16(2, 2)))
        + view_1  f16[4]  view x [4]
        - _to_copy  f32[2,2]  _to_copy x dtype=f32
        - view  f32[4]  view _to_copy [4]
        - _to_copy_1  f16[4]  _to_copy view dtype=f16
        - add  f16[4]  add _to_copy_1 1
        + add  f16[4]  add view_1 1
    """
    changes = 0
    for graph in all_graphs(module):
        before = changes
        while found := sum(_clean(node) for node in list(graph.graph.nodes) if is_cast(node)):
            changes += found
        if changes > before:
            graph.graph.eliminate_dead_code()
    return changes


def _clean(cast: fx.Node) -> int:
    if not cast.users:
        return 0
    for rule in (_same_dtype, _share, _cancel, _share_through_view, _fill):
        replacement = rule(cast)
        if replacement is not None:
            cast.replace_all_uses_with(replacement)
            cast.graph.erase_node(cast)
            return 1
    return 0


def _same_dtype(cast: fx.Node) -> fx.Node | None:
    source = source_of(cast)
    return source if source.meta["val"].dtype is cast.kwargs["dtype"] else None


def _twin(source: fx.Node, cast: fx.Node) -> fx.Node | None:
    """Return an earlier cast of `source` to the same dtype, in the same half of the step."""
    for user in source.users:
        if (
            user is not cast
            and is_cast(user)
            and user.kwargs == cast.kwargs
            and (user in BACKWARD) == (cast in BACKWARD)
            and user < cast
        ):
            return user
    return None


def _share(cast: fx.Node) -> fx.Node | None:
    return _twin(source_of(cast), cast)


def _share_through_view(cast: fx.Node) -> fx.Node | None:
    """``cast(view(x))`` becomes ``view(cast(x))`` if ``cast(x)`` exists."""
    view = source_of(cast)
    if not _looks(view):
        return None
    twin = _twin(view.all_input_nodes[0], cast)
    return None if twin is None else _again(view, twin, cast)


def _cancel(cast: fx.Node) -> fx.Node | None:
    """``narrow(view(widen(x)))`` becomes ``view(x)``, for any number of views."""
    views: list[fx.Node] = []
    node = source_of(cast)
    while _looks(node):
        views.append(node)
        node = node.all_input_nodes[0]
    if not widens(node) or source_of(node).meta["val"].dtype is not cast.kwargs["dtype"]:
        return None
    replacement = source_of(node)
    for view in reversed(views):
        replacement = _again(view, replacement, cast)
    return replacement


def _fill(cast: fx.Node) -> fx.Node | None:
    """Make a constant in 16 bits that was made in FP32 and then cast.

    torch refuses to make a number that the cast would turn into an infinity.
    """
    source = source_of(cast)
    if op_name(source) not in _FILLS or len(source.users) != 1:
        return None
    value = source.args[1] if op_name(source) == "full" else 0
    dtype = cast.meta["val"].dtype
    # A program's own conversion to integers or booleans is none of the casts this pass is for.
    if not dtype.is_floating_point or not isinstance(value, int | float):
        return None
    if torch.finfo(dtype).max < abs(value) < math.inf:
        return None
    source.kwargs = {**source.kwargs, "dtype": cast.kwargs["dtype"]}
    source.meta["val"] = cast.meta["val"]
    return source


def _looks(node: fx.Node) -> bool:
    """Whether the node is a view of one tensor of the same dtype on the same device."""
    if not is_view(node) or len(node.all_input_nodes) != 1:
        return False
    shown, value = node.all_input_nodes[0].meta["val"], node.meta["val"]
    return (
        isinstance(value, torch.Tensor)
        and shown.dtype is value.dtype
        and shown.device == value.device
        and (op_name(node) != "to" or shown.stride() == value.stride())
    )


def _again(view: fx.Node, source: fx.Node, before: fx.Node) -> fx.Node:
    """Repeat a view on another source; a conversion to the dtype it already has is left out."""
    if op_name(view) == "to":
        return source
    with before.graph.inserting_before(before):
        node = before.graph.node_copy(
            view, lambda item: source if item is view.all_input_nodes[0] else item
        )
    node.meta["val"] = view.meta["val"].to(source.meta["val"].dtype)
    return node
