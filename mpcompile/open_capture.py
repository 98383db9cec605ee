"""Capture a program so that it runs for batches of every size: dimension 0 becomes a symbol.

The graph has the ops and the names of the one that is captured for the example's size, and between
them nodes that compute sizes. So a plan, an override or a checkpoint of one fits the other.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from torch import fx

from mpcompile.batch_size import LEAST, Fixed, find_size, open_places, size_of
from mpcompile.errors import BadInput, CannotCapture, CompileError
from mpcompile.node_tensors import is_size
from mpcompile.torch_graph import Forward, Kind, capture, definition, is_foreign
from mpcompile.torch_private import copy_graph, guards_named_by, op_name
from mpcompile.workload import Workload

_WHAT = "the batch size cannot be left open"
_ADVICE = "write this for any size, or leave out dynamic=True"


class _Foreign(Container[str]):
    """All files that are not the user's."""

    def __contains__(self, path: object) -> bool:
        return is_foreign(str(path))


def capture_open(workload: Workload) -> Forward:
    """Capture ``loss(model, *batch)`` for batches of every size from `LEAST` on.

    Raises:
        BadInput: see `capture`; or the example batch is too small to tell.
        CannotCapture: see `capture`; or the program is not the same for every size.
    """
    plain = capture(workload)
    places = open_places(workload.batch)
    if size_of(workload.batch, places) is None:
        raise BadInput(
            "the example batch has no size to leave open",
            workload.origin,
            f"give tensors with {LEAST} rows or more, or leave out dynamic=True",
        )
    try:
        with guards_named_by(_Foreign()):
            forward = capture(workload, places)
            module = _named_like(forward.module, plain.module)
            nodes = {node.name: node for node in module.graph.find_nodes(op="placeholder")}
            fakes = [
                nodes[item.node].meta["val"] for item in forward.inputs if item.kind is Kind.BATCH
            ]
            size = find_size(fakes, places)
    except CompileError as error:
        raise CannotCapture(f"{_WHAT}: {error.what}", error.where, _ADVICE) from error
    where = definition(workload.loss) or workload.origin
    if isinstance(size, Fixed):
        raise _refusal(size, where)
    for node in module.graph.output_node().all_input_nodes:
        if is_size(node):
            raise CannotCapture(
                f"{_WHAT}: a number that depends on it is returned beside the loss",
                where,
                "return it as a tensor, or leave out dynamic=True",
            )
    return replace(forward, module=module, batch_size=size)


def check_open(forward: Forward, workload: Workload) -> None:
    """Refuse a program of which a later stage has found that its batch size is not open.

    Raises:
        CannotCapture: it is not.
    """
    fixed = forward.batch_size.fixed_by() if forward.batch_size else None
    if fixed is not None:
        raise _refusal(fixed, definition(workload.loss) or workload.origin)


def _refusal(fixed: Fixed, where: str) -> CannotCapture:
    return CannotCapture(f"{_WHAT}: {fixed.what} is asked for", fixed.where or where, _ADVICE)


def _named_like(module: fx.GraphModule, like: fx.GraphModule) -> fx.GraphModule:
    """Return a graph whose nodes have the names of another's, those between them names of sizes.

    A graph of other ops keeps its names.
    """
    numbers = [node for node in module.graph.nodes if is_size(node)]
    mine = [node for node in module.graph.nodes if not is_size(node)]
    theirs = list(like.graph.nodes)
    if [op_name(node) for node in mine] != [op_name(node) for node in theirs]:
        return module
    for place, node in enumerate(numbers):
        node.name = f"size_{place}"
    for node, other in zip(mine, theirs, strict=True):
        node.name = other.name
    return copy_graph(module)
