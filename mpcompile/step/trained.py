"""The parameters that an optimizer trains."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping

import torch

from mpcompile.errors import BadInput


def trained_parameters(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    origin: str | None,
    without: Collection[str] = (),
) -> list[list[str]]:
    """Return, per parameter group, the names of the parameters that the optimizer trains.

    Args:
        optimizer: the user's.
        names: ``id(parameter)`` to its name in the captured graph.
        origin: the user's source position for error messages.
        without: parameters that the optimizer does not train, though it holds them, because the
            loss does not depend on them now.

    Raises:
        BadInput: the optimizer needs a closure or sparse gradients, or holds a parameter that is
            not the model's.
    """
    kind = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise BadInput(
            f"{kind}.step() needs a closure, so one step is not one graph",
            origin,
            "use an optimizer whose step() needs no closure, for example AdamW",
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise BadInput(
            f"{kind} takes sparse gradients, but a compiled step computes dense ones",
            origin,
            "use Adam, and Embedding(sparse=False)",
        )
    groups: list[list[str]] = []
    for index, group in enumerate(optimizer.param_groups):
        members: list[str] = []
        for position, parameter in enumerate(group["params"]):
            if not parameter.requires_grad:
                continue
            name = names.get(id(parameter))
            if name is None:
                raise BadInput(
                    f"the loss does not read parameter {position} of the optimizer's group "
                    f"{index}, of shape {list(parameter.shape)}",
                    origin,
                    "leave the parameter out of the optimizer, or use it in the loss",
                )
            if parameter.dtype not in (torch.float32, torch.complex64):
                raise BadInput(
                    f"the parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, not "
                    "float32 or complex64",
                    origin,
                    "convert it with model.to(torch.float32)",
                )
            if name not in without:
                members.append(name)
        groups.append(members)
    if not any(groups):
        raise BadInput(
            "the optimizer trains no parameter", origin, "give the optimizer model.parameters()"
        )
    return groups
