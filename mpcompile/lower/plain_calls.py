"""Ops whose kernel is one Python function: a lowered graph calls the function itself.

The dispatcher of a custom op takes longer than a small piece of a program. A graph that is one such
call and its derivative has nothing that a compiler could fuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

_functions: dict[object, Callable[..., Any]] = {}


def call_plainly(op: object, function: Callable[..., Any]) -> None:
    """Let lowered graphs call a function instead of an op.

    Args:
        op: an op of ours, with one overload.
        function: takes and returns what the op does; autograd is on when it is called.
    """
    _functions[op] = function


def with_plain_calls(graph: fx.Graph) -> bool:
    """Put the functions in the place of their ops; return whether there are any."""
    found = [node for node in graph.nodes if node.target in _functions]
    for node in found:
        node.target = _functions[node.target]
    return bool(found)
