"""16-bit copies of weights as inputs of the pieces that read them.

The update of the step writes a working copy of each weight that a piece casts. So a piece takes
the copy beside the weight, and has no cast. In the first run of a piece there is no such copy: then
the weight is cast once for the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpcompile.program.casts import is_cast
from mpcompile.program.node_tensors import NARROW


class WeightCopies:
    """The copies that one run of a program reads.

    Attributes:
        leaves: by the names of trained weights the copies that were read or given; autograd finds
            their gradients.
    """

    def __init__(self) -> None:
        self.leaves: dict[str, torch.Tensor] = {}
        self._trained: Mapping[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}

    def begin(self, trained: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
        """Begin a run.

        Args:
            trained: the weights that are trained, by name.
            given: the working copies that there are.
        """
        if trained is not self._trained:
            self._trained = trained
            self._names = {id(value): name for name, value in trained.items()}
        self.leaves = {name: copy.detach().requires_grad_() for name, copy in given.items()}

    def take(self) -> dict[str, torch.Tensor]:
        """Return `leaves` at the end of a run, and keep them no longer."""
        leaves, self.leaves = self.leaves, {}
        return leaves

    def of(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the copy of a weight."""
        name = self._names.get(id(weight))
        if name is None:
            return weight.to(dtype)
        leaf = self.leaves.get(name)
        if leaf is None:
            self.leaves[name] = leaf = weight.detach().to(dtype).requires_grad_()
        if leaf.stride() != weight.stride():
            return torch.empty_like(weight.detach(), dtype=dtype).copy_(leaf)
        return leaf


@dataclass(frozen=True, slots=True)
class CopiesRead:
    """The weights that a piece reads in 16 bits.

    Attributes:
        places: the positions of the weights among the inputs, and the dtypes of their copies, which
            are further inputs in this order.
    """

    places: tuple[tuple[int, torch.dtype], ...] = ()

    def bound(self, made: Callable[..., Any], copies: WeightCopies) -> Callable[..., Any]:
        """Return a piece that takes its weights only, and finds the copies itself."""
        places = self.places

        def run(*inputs: Any) -> Any:
            return made(*inputs, *(copies.of(inputs[index], dtype) for index, dtype in places))

        return run if places else made

    def examples(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Return examples of the copies for examples of the inputs, fake or not."""
        made = []
        for index, dtype in self.places:
            value = inputs[index]
            copy = torch.empty_like(value.detach(), dtype=dtype)
            made.append(copy.requires_grad_(value.requires_grad))
        return made


def read_copies(module: fx.GraphModule, weights: Sequence[bool]) -> CopiesRead:
    """Turn 16-bit casts of weights into inputs, behind all others.

    Args:
        module: a graph with casts; changed.
        weights: per input whether it is a parameter.
    """
    graph = module.graph
    inputs = graph.find_nodes(op="placeholder")
    places: list[tuple[int, torch.dtype]] = []
    last = inputs[-1] if inputs else None
    for index, (node, is_weight) in enumerate(zip(inputs, weights, strict=True)):
        casts = [user for user in node.users if is_cast(user) and user.meta["val"].dtype in NARROW]
        dtypes = {cast.meta["val"].dtype for cast in casts}
        if is_weight and len(dtypes) == 1 and last is not None:
            with graph.inserting_after(last):
                last = graph.placeholder(f"{node.name}_working")
            last.meta = {"val": casts[0].meta["val"]}
            for cast in casts:
                cast.replace_all_uses_with(last)
                graph.erase_node(cast)
            places.append((index, *dtypes))
    graph.lint()
    return CopiesRead(tuple(places))
