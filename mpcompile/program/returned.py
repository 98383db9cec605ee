"""The results of a captured function: a tree of tensors and constants, which no graph holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private.tracing import unflatten

PREFIX = "aux."
"""Prefix of the slots of tensors that a loss function returns beside the loss: ``aux.0``."""


TENSOR = object()
"""A tensor among the leaves of a `ReturnedTree`."""


@dataclass(frozen=True, slots=True)
class ReturnedTree:
    """A tree of tensors and constants, as `torch.export` flattens it.

    Attributes:
        structure: the structure that `torch.export` recorded.
        leaves: its leaves: a constant itself, `TENSOR` for a tensor.
    """

    structure: Any
    leaves: tuple[Any, ...]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the tree with these tensors as leaves."""
        given = iter(tensors)
        leaves = [next(given) if leaf is TENSOR else leaf for leaf in self.leaves]
        return unflatten(leaves, self.structure)


def tree_of_results(structure: Any, outputs: Sequence[Any]) -> ReturnedTree:
    """Return the tree of an exported program's own outputs."""
    leaves = tuple(TENSOR if isinstance(item, fx.Node) else item for item in outputs)
    return ReturnedTree(structure, leaves)


def stands_alone(found: ReturnedTree) -> bool:
    """Whether a loss function returns only the loss.

    Raises:
        ValueError: it returns neither ``loss`` nor ``(loss, anything)``.
    """
    count = len(found.leaves)
    whole = unflatten(list(range(count)), found.structure)
    if count == 1 and whole in (0, (0,)):
        return True
    if not isinstance(whole, tuple) or len(whole) != 2 or whole[0] != 0:
        raise ValueError(f"{count} values")
    return False


def loss_last(graph: fx.Graph, written: int) -> None:
    """Put a graph's results in order: written buffers, tensors beside the loss, the loss.

    Args:
        graph: its results are the written buffers, the loss and the tensors beside it.
        written: how many buffers it writes.
    """
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, list | tuple)
    tensors = [item for item in values[written + 1 :] if isinstance(item, fx.Node)]
    output.args = ((*values[:written], *tensors, values[written]),)
