"""The tensors of a graph's nodes: which ones a plan may change, and their sizes."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import torch
from torch import fx

NARROW = (torch.float16, torch.bfloat16)
"""The 16-bit formats."""

_UNBOUNDED = 2**40


def is_full(node: fx.Node) -> bool:
    """Whether the node is an FP32 tensor, the only dtype that a plan may change."""
    return is_full_tensor(node.meta.get("val"))


def is_full_tensor(value: object) -> bool:
    """Whether a node's value is an FP32 tensor."""
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


def is_size(node: fx.Node) -> bool:
    """Whether the node computes a number from the sizes of dynamic dimensions."""
    numbers = int | float | torch.SymInt | torch.SymFloat | torch.SymBool
    return node.op == "call_function" and isinstance(node.meta.get("val"), numbers)


def count_of(value: torch.Tensor) -> int:
    """Return how many numbers a tensor holds.

    A dynamic dimension has its size in the example. One that depends on values has the largest
    size that it can have, or 1 if there is no bound.
    """
    return prod(known_size(size) for size in value.shape)


def shape_of(value: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape in numbers; dynamic dimensions as in `count_of`."""
    return tuple(map(known_size, value.shape))


def known_size(size: int | torch.SymInt) -> int:
    """Return a size as a number; for a dynamic dimension as in `count_of`."""
    if isinstance(size, int):
        return size
    if size.node.has_hint():
        return int(size.node.hint)
    largest = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(largest) if largest < _UNBOUNDED else 1


def sizes_read(nodes: Collection[fx.Node]) -> set[fx.Node]:
    """Return the nodes outside a part of a graph that compute the sizes that this part reads."""
    sizes: set[fx.Node] = set()
    ahead = [item for node in nodes for item in node.all_input_nodes if is_size(item)]
    while ahead:
        size = ahead.pop()
        if size not in sizes and size not in nodes:
            sizes.add(size)
            ahead.extend(item for item in size.all_input_nodes if is_size(item))
    return sizes
