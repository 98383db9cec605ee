"""Compare a 16-bit tensor with its own extreme as one FP32 tensor, so both are rounded alike."""

from __future__ import annotations

import operator

import torch
from torch import fx

from mpcompile.program.casts import CAST, is_cast
from mpcompile.program.node_tensors import NARROW
from mpcompile.step.graph import call
from mpcompile.torch_private.ops import is_view, op_name

_COMPARE = frozenset("eq ne lt le gt ge".split())
_EXTREME = frozenset("amax amin max min aminmax".split())


def compare_wide(module: fx.GraphModule) -> int:
    """Let comparisons of a 16-bit tensor with its own extreme read one cast of it to FP32.

    An extreme is one of the numbers, so no result changes. But ONNX Runtime computes FP16 ops in
    FP32 on a CPU, and drops the rounding of a result where an FP32 op reads it. If it drops that of
    the tensor and keeps that of the extreme, no number equals the extreme. The gradient of ``amax``
    is then 0/0.

    Returns:
        The number of comparisons that were changed.

    Example:
        >>> before_and_after(compare_wide, graph(lambda x: x == x.amax(1, True), x=f16(2, 3)))
        - amax  f16[2,1]  amax x [1] True
        - eq  b8[2,3]  eq x amax
        + _to_copy_default  f32[2,3]  _to_copy x dtype=f32
        + amax_default  f32[2,1]  amax _to_copy_default [1] True
        + eq  b8[2,3]  eq _to_copy_default amax_default
    """
    graph = module.graph
    changes = 0
    for node in list(graph.nodes):
        sides = node.args if node.op == "call_function" and op_name(node) in _COMPARE else ()
        if len(sides) != 2 or not all(isinstance(side, fx.Node) for side in sides):
            continue
        root = _common_root(*sides)
        if root is None:
            continue
        with graph.inserting_before(node):
            made = {root: call(graph, CAST, root, dtype=torch.float32)}
            node.args = tuple(_wide(side, made) for side in sides)
        changes += 1
    if changes:
        graph.eliminate_dead_code()
        graph.lint()
    return changes


def _common_root(one: fx.Node, other: fx.Node) -> fx.Node | None:
    """Return the 16-bit tensor whose numbers both are, if one is an extreme of it, in 16 bits."""
    extreme = rounded = False
    roots = []
    for side in (one, other):
        path = _path(side)
        narrow = [k for k, node in enumerate(path) if _is_narrow(node)]
        if not narrow:
            return None
        extreme |= any(op_name(node) in _EXTREME for node in path[: narrow[-1]])
        rounded |= narrow[0] == 0 or len(narrow) > 1
        roots.append(path[narrow[-1]])
    return roots[0] if extreme and rounded and roots[0] is roots[1] else None


def _path(node: fx.Node) -> list[fx.Node]:
    """Return a node and the nodes before it whose numbers are all that it holds."""
    path = [node]
    while _selects(path[-1]):
        path.append(path[-1].all_input_nodes[0])
    return path


def _selects(node: fx.Node) -> bool:
    """Whether all numbers of a node's floating-point result are numbers of its one input."""
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return False
    if node.target is operator.getitem or op_name(node) in _EXTREME:
        return True
    value = node.meta["val"]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    moves = is_view(node) and node.target is not torch.ops.aten.view.dtype
    return floating and (moves or is_cast(node))


def _is_narrow(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in NARROW


def _wide(node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
    """Return the same numbers in FP32; nodes that are made are added to a dict."""
    if node not in made:
        before = node.all_input_nodes[0]
        wide = _wide(before, made)
        if is_cast(node):
            made[node] = wide
        elif node.target is operator.getitem:
            made[node] = node.graph.call_function(node.target, (wide, node.args[1]))
            made[node].meta["val"] = wide.meta["val"][node.args[1]]
        else:
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda item: wide if item is before else item
            )
            assert callable(node.target)
            made[node] = call(node.graph, node.target, *args, **kwargs)
    return made[node]
