"""Emulate a Tensor Core on a device without one: "pseudo FP16" (paper 4.2).

Each op that reads or writes 16-bit tensors gets its operands widened to FP32, computes in FP32, and
has its results rounded to 16 bits. Ops that only move values run on 16 bits as they are.

The mark `EMULATES` on each node of a rewritten graph names the original node whose value it has. A
rounding cast names the op that it rounds; that op and each widening cast have "".
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.fx.node import Argument

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.program.casts import CAST
from mpcompile.program.control_flow import all_graphs
from mpcompile.program.marks import EMULATES
from mpcompile.program.node_tensors import NARROW
from mpcompile.torch_private.ops import is_higher_order, is_view, op_name
from mpcompile.torch_private.tensors import cast_to

_MAKES = frozenset(
    "_to_copy zeros ones full zeros_like ones_like full_like empty empty_like new_zeros new_ones "
    "new_full new_empty new_empty_strided empty_strided empty_permuted bernoulli copy_ "
    "_local_scalar_dense sym_size all_reduce wait_tensor".split()
)


def emulate_half(module: fx.GraphModule) -> int:
    """Rewrite for FP32 arithmetic; return the number of ops that changed.

    A rewritten graph has no 16-bit arithmetic left, so a second run changes nothing. A tensor that
    crosses the border of an inner graph is stored, so it keeps its 16 bits.

    Example:
        >>> before_and_after(emulate_half, graph(lambda x, y: torch.exp(x + y), x=f16(4), y=f16(4)))
        - add  f16[4]  add x y
        - exp  f16[4]  exp add
        - return  exp
        + _to_copy_default  f32[4]  _to_copy x dtype=f32
        + _to_copy_default_1  f32[4]  _to_copy y dtype=f32
        + add  f32[4]  add _to_copy_default _to_copy_default_1
        + _to_copy_default_2  f16[4]  _to_copy add dtype=f16
        + _to_copy_default_3  f32[4]  _to_copy _to_copy_default_2 dtype=f32
        + exp  f32[4]  exp _to_copy_default_3
        + _to_copy_default_4  f16[4]  _to_copy exp dtype=f16
        + return  _to_copy_default_4
    """
    return sum(_emulate(graph) for graph in all_graphs(module))


def _emulate(module: fx.GraphModule) -> int:
    wide: dict[fx.Node, fx.Node] = {}
    changed = 0
    for node in list(module.graph.nodes):
        EMULATES[node] = node.name
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is operator.getitem or _moves(node):
            continue
        results = _results(node)
        narrow = [item for item in node.all_input_nodes if _dtype(item) in NARROW]
        if not narrow and not any(_dtype(item) in NARROW for item in results):
            continue
        for item in narrow:
            if item not in wide:
                with module.graph.inserting_before(node):
                    wide[item] = _cast(module.graph, item, torch.float32)
            node.replace_input_with(item, wide[item])
        # A dtype may also be an argument: the backward of a softmax takes that of its input.
        node.args = tuple(_widened(argument) for argument in node.args)
        node.kwargs = {name: _widened(argument) for name, argument in node.kwargs.items()}
        for result in results:
            dtype = _dtype(result)
            if dtype is None or dtype not in NARROW:
                continue
            users = list(result.users)
            with module.graph.inserting_after(result):
                rounded = _cast(module.graph, result, dtype)
            EMULATES[rounded], EMULATES[result] = result.name, ""
            for user in users:
                user.replace_input_with(result, rounded)
            result.meta["val"] = cast_to(result.meta["val"], torch.float32)
        changed += 1
    if changed:
        module.graph.lint()
    return changed


def _widened(argument: Argument) -> Argument:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in NARROW else argument


def _moves(node: fx.Node) -> bool:
    name = op_name(node)
    rule = TORCH_RULES.get(name)
    return (
        is_view(node)
        or is_higher_order(node)
        or name in _MAKES
        or (rule is not None and rule.name == "movement")
    )


def _results(node: fx.Node) -> list[fx.Node]:
    if isinstance(node.meta.get("val"), torch.Tensor):
        return [node]
    return [user for user in node.users if user.target is operator.getitem]


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    cast = graph.call_function(CAST, (node,), {"dtype": dtype})
    cast.meta = {**node.meta, "val": cast_to(node.meta["val"], dtype)}
    EMULATES[cast] = ""
    return cast
