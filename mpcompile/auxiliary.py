"""What a loss function returns beside the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.torch_private import unflatten

PREFIX = "aux."
"""Of the slots of tensors that a loss returns beside the loss: ``aux.0``."""


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """A nest of tensors and constants, as `torch.export` flattens it.

    Attributes:
        structure: of ``(loss, anything)``.
        leaves: what is in ``anything``; a constant itself, `TENSOR` for a tensor.
    """

    structure: Any
    leaves: tuple[Any, ...]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return ``anything`` around these tensors."""
        given = iter(tensors)
        leaves = [next(given) if leaf is TENSOR else leaf for leaf in self.leaves]
        return unflatten([None, *leaves], self.structure)[1]


TENSOR = object()
"""Stands for a tensor among the leaves of an `Auxiliary`."""


def auxiliary(structure: Any, outputs: Sequence[Any]) -> Auxiliary | None:
    """Return what stands beside the loss in an exported program's own outputs; None: nothing.

    Raises:
        ValueError: the outputs are neither ``loss`` nor ``(loss, anything)``.
    """
    whole = unflatten(list(range(len(outputs))), structure)
    if len(outputs) == 1 and whole in (0, (0,)):
        return None
    if not isinstance(whole, tuple) or len(whole) != 2 or whole[0] != 0:
        raise ValueError(f"{len(outputs)} values")
    leaves = tuple(TENSOR if isinstance(item, fx.Node) else item for item in outputs[1:])
    return Auxiliary(structure, leaves)


def loss_last(graph: fx.Graph, written: int) -> None:
    """Put a graph's results in order: written buffers, tensors beside the loss, the loss.

    Args:
        graph: its results are the written buffers, the loss and what stands beside it.
        written: how many buffers it writes.
    """
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, list | tuple)
    tensors = [item for item in values[written + 1 :] if isinstance(item, fx.Node)]
    output.args = ((*values[:written], *tensors, values[written]),)
