"""Python numbers whose arithmetic is recorded in a graph.

What torch asks of the object behind a `torch.SymFloat` is not public. Checked on torch 2.11 and
2.13.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private import DataDependent


class _Number:
    """What a `torch.SymFloat` delegates to: arithmetic on it makes nodes of a graph.

    torch calls the methods of such an object by the names of Python's operators and of a few of its
    own. `torch.fx.experimental.sym_node.SymNode` answers with sympy expressions, whose order of
    evaluation is not the program's.
    """

    def __init__(self, graph: fx.Graph, value: fx.Node | float) -> None:
        self.graph = graph
        self.value = value

    def is_float(self) -> bool:
        return True

    def is_int(self) -> bool:
        return False

    is_bool = is_constant = is_nested_int = is_int

    def wrap_float(self, number: float) -> _Number:
        return _Number(self.graph, number)

    wrap_int = wrap_float

    def guard_float(self, file: str, line: int) -> float:
        del file, line
        raise DataDependent("a number read from a tensor")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in ("eq", "ne", "lt", "le", "gt", "ge"):
            return lambda _: _Comparison()
        name = name.removeprefix("float_")  # float_pow, float_truediv
        if name not in ("add", "sub", "mul", "truediv", "pow", "neg"):
            raise AttributeError(name)
        return lambda *others: self._call(getattr(operator, name), *others)

    def _call(self, target: Callable[..., Any], *others: _Number) -> _Number:
        node = self.graph.call_function(target, (self.value, *(item.value for item in others)))
        result = _Number(self.graph, node)
        node.meta["val"] = torch.SymFloat(result)
        return result


class _Comparison:
    """What a `torch.SymBool` delegates to: nobody knows the answer when a graph is recorded."""

    def is_bool(self) -> bool:
        return True

    def is_int(self) -> bool:
        return False

    is_float = is_constant = is_int

    def expect_true(self, file: str, line: int) -> bool:
        """Let ``torch._check(number >= 0)`` of torch's own power pass."""
        del file, line
        return True

    def bool_(self) -> bool:
        raise DataDependent("a comparison of a number read from a tensor")


def number_of(graph: fx.Graph, node: fx.Node) -> torch.SymFloat:
    """Return a node's result as a Python number; arithmetic on it is recorded in the graph."""
    return torch.SymFloat(_Number(graph, node))


def node_of_number(number: torch.SymFloat) -> fx.Node | float:
    """Return the node that made a number of `number_of`."""
    value: fx.Node | float = number.node.value
    return value
