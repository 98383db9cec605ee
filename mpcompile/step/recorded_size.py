"""Sizes that are symbols, as nodes of a recorded graph.

A function that runs on fake tensors with symbols in their shapes passes `torch.SymInt` to its ops.
In the graph each is a size of a tensor, or arithmetic on such sizes. Sizes that depend on an open
batch size are right behind the inputs. Sizes that depend on values, such as the number of elements
that a mask selects, are behind the op that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private.tracing import node_of_expression

_SIZE = torch.ops.aten.sym_size.int


class RecordedSizes:
    """Makes the nodes, each once.

    Args:
        graph: must have only its placeholders.
        inputs: per placeholder its fake tensor.
    """

    def __init__(self, graph: fx.Graph, inputs: Mapping[fx.Node, torch.Tensor]) -> None:
        self._graph = graph
        self._last = next(reversed(list(inputs)), None)
        self._dimensions: dict[Any, tuple[fx.Node, int]] = {}
        for node, value in inputs.items():
            self._note(value, node)
        self._of_inputs = {*self._dimensions}
        self._made: dict[Any, fx.Node] = {}

    def note(self, value: torch.Tensor, node: fx.Node) -> None:
        """Note a tensor made by a node whose sizes may be new symbols."""
        if any(isinstance(size, torch.SymInt) for size in value.shape):
            self._note(value, node)

    def note_number(self, value: torch.SymInt, node: fx.Node) -> None:
        """Note an integer that a node reads from a tensor."""
        self._made[value.node.expr] = node

    def _note(self, value: torch.Tensor, node: fx.Node) -> None:
        for dimension, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                self._dimensions.setdefault(size.node.expr, (node, dimension))

    def node_of(self, size: torch.SymInt | torch.SymFloat) -> fx.Node | float:
        """Return the node of a size, or the number if the size is known."""
        expression = size.node.expr
        if expression.is_number:
            return int(expression) if isinstance(size, torch.SymInt) else float(expression)
        if expression in self._made:
            return self._made[expression]
        if expression.is_symbol or expression in self._dimensions:
            return self._size(expression)
        if expression not in self._made:
            symbols = {symbol: self._size(symbol) for symbol in _sorted(expression)}
            self._made[expression] = self._append(
                all(symbol in self._of_inputs for symbol in symbols),
                lambda: node_of_expression(expression, symbols),
            )
        return self._made[expression]

    def _size(self, symbol: Any) -> fx.Node:
        if symbol not in self._made:
            self._made[symbol] = self._append(
                symbol in self._of_inputs,
                lambda: self._graph.call_function(_SIZE, self._dimensions[symbol]),
            )
        return self._made[symbol]

    def _append(self, of_inputs: bool, make: Callable[[], fx.Node]) -> fx.Node:
        """Make nodes behind the inputs and the sizes of inputs, or at the end of the graph."""
        before = self._last if of_inputs else next(iter(reversed(self._graph.nodes)), None)
        assert before is not None
        with self._graph.inserting_before(before.next) if of_inputs else nullcontext():
            made = make()
        node = before
        while node is not made:
            node = node.next
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), _value)
            target: Any = node.target
            node.meta["val"] = target(*args, **kwargs)
        if of_inputs:
            self._last = made
        return made


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _sorted(expression: Any) -> list[Any]:
    return sorted(expression.free_symbols, key=str)
