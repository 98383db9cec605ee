"""Paint a graph greedily, after TensorFlow's ``auto_mixed_precision`` grappler pass.

Phases 1, 2, 3 and 5 of ``tensorflow/core/grappler/optimizers/auto_mixed_precision.cc`` (FP16 on
CUDA; phase 4 is for BF16 only, the rest is about loops, lists and existing casts):

1. every op of the allow list is painted;
2. deny spreads downstream through infer and clear ops, into a clear op only if it is upstream of
   an infer or deny op;
3. an infer or clear op both downstream and upstream of painted ops is painted;
4. paint spreads through clear ops in both directions.

The lists are our op table's: ``HALF`` allow, ``FULL`` deny, ``FREE`` infer. Clear ops compute
nothing (movement, dropout, comparison, embedding); ReLU is clear too, as in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx

from mpcompile.plan.dataflow import Dataflow, Op
from mpcompile.plan.rule import Wish
from mpcompile.program.casts import CAST, is_cast, source_of, widens
from mpcompile.torch_private.ops import op_name

CLEAR_ROWS = frozenset({"movement", "dropout", "comparison", "embedding"})

# Kernels that need input and weight of one type; others take 16 bits beside an FP32 weight.
_ONE_TYPE = frozenset({"rms_norm"})

Neighbours = dict[str, tuple[str, ...]]


def paint(flow: Dataflow) -> frozenset[str]:
    """Return the ids of the ops that are painted 16 bits."""
    allow = {op.id for op in flow.ops if op.wish is Wish.HALF}
    deny = {op.id for op in flow.ops if op.wish is Wish.FULL}
    clear = {op.id for op in flow.ops if op.wish is Wish.FREE and is_clear(op)}
    infer = {op.id for op in flow.ops if op.wish is Wish.FREE} - clear
    up, down = neighbours(flow)

    before_strict = reach(deny | infer, up, clear.__contains__)
    deny = reach(deny, down, lambda op: op in before_strict and op not in allow)
    may = (clear | infer) - deny
    after = reach(allow, down, may.__contains__)
    allow = reach(allow, up, lambda op: op in may and op in after)
    spread = clear - deny
    both = {op: up[op] + down[op] for op in up}
    return frozenset(reach(allow, both, spread.__contains__))


def is_clear(op: Op) -> bool:
    """Return whether the op only moves numbers or sets them to zero."""
    return op.rule in CLEAR_ROWS or op.kind == "relu"


def neighbours(flow: Dataflow) -> tuple[Neighbours, Neighbours]:
    """Return for each op the ops it reads from, and the ops that read from it."""
    writer = {tensor: op.id for op in flow.ops for tensor in op.writes}
    up = {op.id: tuple(writer[t] for t in op.reads if t in writer) for op in flow.ops}
    down: dict[str, list[str]] = {op.id: [] for op in flow.ops}
    for op, sources in up.items():
        for source in sources:
            down[source].append(op)
    return up, {op: tuple(readers) for op, readers in down.items()}


def reach(roots: Iterable[str], edges: Neighbours, enter: Callable[[str], bool]) -> set[str]:
    """Return the roots and all ops that are reachable from them through allowed ops."""
    found = set(roots)
    waiting = list(found)
    while waiting:
        for op in edges[waiting.pop()]:
            if op not in found and enter(op):
                found.add(op)
                waiting.append(op)
    return found


def run_natively(module: fx.GraphModule, flow: Dataflow, half: frozenset[str]) -> int:
    """Make painted ops that compute in FP32 read and write 16 bits, like TensorFlow's kernels.

    Our plans widen before such an op and narrow after it, and our passes ensure that only 16 bits
    are kept. Grappler retypes the op: its kernel widens in registers.

    Args:
        module: the forward graph, casts inserted.
        flow: the painted graph.
        half: the painted ops.

    Returns:
        How many ops were retyped.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    native = [nodes[op.id] for op in flow.ops if op.inside and op.id in half]
    for node in native:
        _read_narrow(node)
        result = node if isinstance(node.meta["val"], torch.Tensor) else min(node.users)
        wide = [user for user in result.users if not is_cast(user) and user not in native]
        if wide:
            with module.graph.inserting_after(result):
                copy = _cast(result, torch.float32)
            for user in wide:
                user.replace_input_with(result, copy)
    module.graph.eliminate_dead_code()
    return len(native)


def _read_narrow(node: fx.Node) -> None:
    wide = [item for item in node.all_input_nodes if widens(item)]
    for item in wide:
        node.replace_input_with(item, source_of(item))
    if wide and op_name(node) in _ONE_TYPE:
        weights = [item for item in node.all_input_nodes if item.op == "placeholder"]
        for item in weights:
            with node.graph.inserting_before(node):
                copy = _cast(item, source_of(wide[0]).meta["val"].dtype)
            node.replace_input_with(item, copy)


def _cast(source: fx.Node, dtype: torch.dtype) -> fx.Node:
    copy = source.graph.call_function(CAST, (source,), {"dtype": dtype})
    copy.meta["val"] = source.meta["val"]
    return copy
