"""Capture a program so that it runs for batches of every size: dimension 0 becomes a symbol.

The graph has the same ops and names as the one that is captured for the example's size, and between
them nodes that compute sizes. So a plan, an override or a checkpoint of one graph fits the other.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from mpcompile.errors import BadInput, CannotCapture, CompileError
from mpcompile.program.batch_size import LEAST, SizeLimit, find_size, size_of
from mpcompile.program.capture import (
    Forward,
    InputKind,
    capture,
    source_position,
)
from mpcompile.program.cudnn_rnn import MODES
from mpcompile.program.derivatives.own_backward import OwnBackward, Seed
from mpcompile.program.functional.instead import DifferentiableInterpreter
from mpcompile.program.node_tensors import is_size
from mpcompile.program.numbers.inputs import NumberPlace
from mpcompile.program.stack_lines import is_foreign
from mpcompile.program.tracing.export import definition
from mpcompile.program.tracing.traced_program import Watch
from mpcompile.program.workload import Workload
from mpcompile.torch_private.graphs import copy_graph
from mpcompile.torch_private.ops import draws, given, op_name
from mpcompile.torch_private.tracing import guards_named_by, python_dispatcher

_ATEN = torch.ops.aten
_WHAT = "the batch size cannot be left open"
_ADVICE = (
    "write the program for any size, with x.shape[0] and not len(x), or leave out dynamic=True"
)


class _Foreign(Container[str]):
    """The set of all files that are not the user's."""

    def __contains__(self, path: object) -> bool:
        return is_foreign(str(path))


def capture_open(
    workload: Workload,
    open_dims: tuple[bool, ...],
    numbers: Sequence[NumberPlace] = (),
    watch: Watch | None = None,
) -> Forward:
    """Capture ``loss(model, *batch)`` for batches of every size of at least `LEAST`.

    Args:
        workload: the program.
        open_dims: per tensor of the batch whether its dimension 0 has the size that is left open,
            unless the program fixes it.
        numbers: see `capture`.
        watch: see `capture`.

    Raises:
        BadInput: see `capture`; or the example batch has no size that can be open.
        CannotCapture: see `capture`; or the program is not the same for every size.
    """
    plain = capture(workload, (), numbers, watch)
    if size_of(workload.batch, open_dims) is None:
        raise BadInput(
            "the example batch has no batch size that can stay open",
            workload.origin,
            f"give tensors with {LEAST} rows or more, or leave out dynamic=True",
        )
    try:
        with guards_named_by(_Foreign()):
            forward = capture(workload, open_dims, numbers, watch)
            module = _named_like(forward.module, plain.module)
            nodes = {node.name: node for node in module.graph.find_nodes(op="placeholder")}
            fakes = [
                nodes[item.node].meta["val"]
                for item in forward.inputs
                if item.kind is InputKind.BATCH
            ]
            size = find_size(fakes, open_dims)
    except CompileError as error:
        raise CannotCapture(f"{_WHAT}: {error.what}", error.where, _ADVICE) from error
    where = definition(workload.loss) or workload.origin
    if isinstance(size, SizeLimit):
        raise _refusal(size, where)
    for node in module.graph.output_node().all_input_nodes:
        if is_size(node):
            raise CannotCapture(
                f"{_WHAT}: the program returns, beside the loss, a number that depends on it",
                where,
                "return the number as a tensor, or leave out dynamic=True",
            )
    return replace(forward, module=module, batch_size=size)


def check_open(forward: Forward, workload: Workload) -> None:
    """Refuse a program if a later stage found that its batch size is not open.

    Raises:
        CannotCapture: the batch size is not open.
    """
    fixed = forward.batch_size.fixed_by() if forward.batch_size else None
    if fixed is not None:  # no line of the user fixes it
        where = definition(workload.loss) or workload.origin
        raise _refusal(replace(fixed, where=None), where)


class WatchedInterpreter(DifferentiableInterpreter):
    """Runs a forward graph on fake tensors; refuses an op that needs to know the batch size.

    Args:
        forward: the graph; if its batch size is not open, no op is checked.
        origin: the user's source position for error messages.
        seed: of the backward pass that follows.
    """

    def __init__(self, forward: Forward, origin: str | None, seed: Seed) -> None:
        super().__init__(forward.module)
        self._size, self._origin = forward.batch_size, origin
        self._seed = seed
        self._guards = len(self._size.environment.guards) if self._size else 0

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and check whether torch has added a guard on sizes."""
        if isinstance(n.target, OwnBackward):
            n.target.seed = self._seed
        if self._size is None:
            return super().run_node(n)
        where = source_position(n)
        position = where.at or self._origin
        try:
            result = super().run_node(n)
        except RuntimeError as error:
            if draws(n) or op_name(n) in MODES:  # a second run would draw again or differ
                raise needs_size(op_name(n), position) from error
            with python_dispatcher():
                result = super().run_node(n)
        if len(self._size.environment.guards) > self._guards:
            self._guards = len(self._size.environment.guards)
            if self._size.fixed_by() is not None:
                raise needs_size(op_name(n), position)
        return result


def needs_size(what: str, where: str | None) -> CannotCapture:
    """Return the error for a program that torch differentiates for known sizes only."""
    return CannotCapture(
        f"{_WHAT}: torch must know it to differentiate {what}", where, "leave out dynamic=True"
    )


def _refusal(fixed: SizeLimit, where: str | None) -> CannotCapture:
    what = f"{_WHAT}, because the program requires {fixed.what}"
    return CannotCapture(what, fixed.where or where, _ADVICE)


def _say_output_sizes(graph: fx.Graph) -> None:
    """Give interpolations their result size, which torch otherwise computes from fixed sizes.

    ``aten::upsample_nearest2d.vec`` computes that size and calls the default overload.
    """
    for node in graph.nodes:
        name = op_name(node)
        if name.startswith("upsample_") and node.target is getattr(_ATEN, name).vec:
            sizes = node.meta["val"].shape[2:]
            value, _, *options, factors = given(node).values()
            node.target = getattr(_ATEN, name).default
            node.args = (value, list(sizes), *options, *(factors or [None] * len(sizes)))
            node.kwargs = {}


def _named_like(module: fx.GraphModule, like: fx.GraphModule) -> fx.GraphModule:
    """Return a graph with the node names of another; nodes that compute sizes get ``size_0``.

    A graph with other ops keeps its names.
    """
    _drop_whole_slices(module.graph, like.graph)
    _say_output_sizes(module.graph)
    numbers = [node for node in module.graph.nodes if is_size(node)]
    mine = [node for node in module.graph.nodes if not is_size(node)]
    theirs = list(like.graph.nodes)
    if [op_name(node) for node in mine] != [op_name(node) for node in theirs]:
        return module
    for position, node in enumerate(numbers):
        node.name = f"size_{position}"
    for node, other in zip(mine, theirs, strict=True):
        node.name = other.name
    return copy_graph(module)


def _drop_whole_slices(graph: fx.Graph, like: fx.Graph) -> None:
    """Remove slices of all rows, which ``x[:, 1:]`` adds if their number is a symbol."""
    if any(map(_is_whole_slice, like.nodes)):
        return
    for node in list(filter(_is_whole_slice, graph.nodes)):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


def _is_whole_slice(node: fx.Node) -> bool:
    return node.target is _ATEN.slice.Tensor and node.args[2:] == (0, sys.maxsize)
