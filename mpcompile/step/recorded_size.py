"""Sizes that depend on an open batch size, as nodes of a recorded graph.

A function that runs on fake tensors with symbols in their shapes passes `torch.SymInt` to its ops.
In the graph each is a size of an input, or arithmetic on such sizes, right behind the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            for dimension, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    self._dimensions.setdefault(size.node.expr, (node, dimension))
        self._made: dict[Any, fx.Node] = {}

    def node_of(self, size: torch.SymInt | torch.SymFloat) -> fx.Node | float:
        """Return the node of a size, or the number if the size is known."""
        expression = size.node.expr
        if expression.is_number:
            return int(expression) if isinstance(size, torch.SymInt) else float(expression)
        if expression.is_symbol:
            return self._input_size(expression)
        if expression not in self._made:
            symbols = {symbol: self._input_size(symbol) for symbol in _sorted(expression)}
            assert self._last is not None
            with self._graph.inserting_before(self._last.next):
                made = node_of_expression(expression, symbols)
            while self._last is not made:
                self._last = node = self._last.next
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), _value)
                target: Any = node.target
                node.meta["val"] = target(*args, **kwargs)
            self._made[expression] = made
        return self._made[expression]

    def _input_size(self, symbol: Any) -> fx.Node:
        if symbol not in self._made:
            assert self._last is not None
            with self._graph.inserting_before(self._last.next):
                node = self._graph.call_function(_SIZE, self._dimensions[symbol])
            like, dimension = self._dimensions[symbol]
            node.meta["val"] = like.meta["val"].shape[dimension]
            self._made[symbol] = self._last = node
        return self._made[symbol]


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _sorted(expression: Any) -> list[Any]:
    return sorted(expression.free_symbols, key=str)
