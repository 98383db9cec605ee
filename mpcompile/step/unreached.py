"""Parameters that the loss does not reach: eager PyTorch gives them no gradient and no update."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import fx

from mpcompile.errors import BadInput, UnusedParameters, warn
from mpcompile.program.capture import Forward, InputKind
from mpcompile.torch_private.ops import op_name

_NAMED = 5


class NotReached(BadInput):
    """The loss does not depend on some of the trained parameters.

    Attributes:
        names: those parameters.
    """

    def __init__(self, names: Sequence[str], origin: str | None) -> None:
        super().__init__(
            f"the optimizer trains {some(names)}, but the loss does not depend on them",
            origin,
            "leave unused parameters out of the optimizer",
        )
        self.names = tuple(names)


def unreached(forward: Forward, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the parameters of an optimizer from which no way leads to the loss.

    It reads the graph only. A gradient may still be missing, for example behind a comparison.

    Args:
        forward: its last result is the loss.
        optimizer: what it holds that is not the model's is left to others.
    """
    (results,) = forward.module.graph.output_node().args
    assert isinstance(results, list | tuple)
    seen: set[fx.Node] = set()
    ahead = [result for result in results[-1:] if isinstance(result, fx.Node)]
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            if op_name(node) != "detach":
                ahead.extend(node.all_input_nodes)
    names = {node.name for node in seen}
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    return tuple(
        item.name
        for item in forward.inputs
        if item.kind is InputKind.PARAMETER and id(item.tensor) in held and item.node not in names
    )


def check_any_reached(
    names: Collection[str], optimizer: torch.optim.Optimizer, forward: Forward, origin: str | None
) -> None:
    """Raise BadInput if the loss reaches no parameter that the optimizer trains.

    Args:
        names: the parameters that it does not reach.
        optimizer: the user's.
        forward: the program.
        origin: the user's source position for error messages.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    trained = [item.name for item in forward.inputs if id(item.tensor) in held]
    if names and not set(trained) - {*names}:
        raise BadInput(
            f"the loss depends on none of the parameters that the optimizer trains: {some(names)}",
            origin,
            "compute the loss from the model's results, without detach() or no_grad",
        )


def say_unused(names: Collection[str]) -> None:
    """Warn of the parameters that a step leaves as they are."""
    if names:
        warn(
            f"the loss does not reach {some(names)}: like in eager PyTorch they get no gradient, "
            "no update and no weight decay; freeze them with requires_grad_(False) to say so.",
            UnusedParameters,
        )


def some(names: Collection[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(_first(names))


def _first(names: Collection[str]) -> Iterator[str]:
    for position, name in enumerate(names):
        if position == _NAMED:
            yield f"and {len(names) - _NAMED} more"
            return
        yield name
