"""The results of a captured function: a tree of tensors and constants, which no graph holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private.tracing import leaves_of, unflatten

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

    @property
    def count(self) -> int:
        """The number of its tensors."""
        return sum(leaf is TENSOR for leaf in self.leaves)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the tree with these tensors as leaves."""
        given = iter(tensors)
        leaves = [next(given) if leaf is TENSOR else leaf for leaf in self.leaves]
        return unflatten(leaves, self.structure)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in the user's objects: an attribute, an item, a closure's variable, a global.

    Attributes:
        path: as a person writes it: ``model.attention.last``.
        holder: the path of what holds it.
        key: its name or key there.
        open: whether the holder can have any key.
    """

    path: str
    holder: str
    key: Any
    open: bool


@dataclass(frozen=True, slots=True)
class Left:
    """What a call of the program leaves in places of the user's objects, made of tensors.

    Attributes:
        spots: the places.
        tree: a list of what each place gets; its tensors are the last results before the loss.
    """

    spots: tuple[Spot, ...]
    tree: ReturnedTree

    @property
    def names(self) -> tuple[str, ...]:
        """The place of each of its tensors."""
        given = self.tree([torch.empty(0)] * self.tree.count)
        return tuple(
            spot.path
            for spot, value in zip(self.spots, given, strict=True)
            for leaf in leaves_of(value)
            if isinstance(leaf, torch.Tensor)
        )


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
