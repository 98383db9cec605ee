"""Copy the weights that an `OrtTrainStep` has trained into a torch model and its optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from mpcompile.errors import BadInput, did_you_mean
from mpcompile.onnx.device_memory import Array
from mpcompile.onnx.train_step import OrtTrainStep


def load_into(
    model: nn.Module, step: OrtTrainStep, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Copy parameters, buffers and, if an optimizer is given, its state and learning rates.

    If one tensor does not fit, nothing is changed.

    Args:
        model: the module that was exported, or one like it.
        step: the trained step.
        optimizer: over the model's parameters, with the groups of the exported optimizer.

    Raises:
        BadInput: the step trains something the model or the optimizer does not have.
    """
    pieces = step.pieces()
    own = model.state_dict(keep_vars=True)
    written = {slot.name for slot in step.file.state if slot.next}
    trained = {piece.name for piece in step.file.pieces if piece.slot in written}
    # A constant outside of the model's state dict never changed.
    values = {
        name: _tensor(array)
        for name, array in pieces.items()
        if "::" not in name and (name in own or name in trained)
    }
    for name, value in values.items():
        if name not in own:
            what = f"the model has no {name}{did_you_mean(name, own)}"
            raise BadInput(what, fix="give the model that was exported")
        if own[name].shape != value.shape:
            what = (
                f"{name} is {list(own[name].shape)} in the model, but {list(value.shape)} in "
                "the step"
            )
            raise BadInput(what, fix="give the model that was exported")
    kept = {} if optimizer is None else _optimizer_state(pieces, own, optimizer)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    if optimizer is not None:
        document = optimizer.state_dict()
        for group, rate in step.rates.items():
            before = document["param_groups"][group]["lr"]
            whole = isinstance(before, torch.Tensor)
            document["param_groups"][group]["lr"] = torch.full_like(before, rate) if whole else rate
        optimizer.load_state_dict({**document, "state": kept})


def _optimizer_state(
    pieces: dict[str, Array], own: dict[str, Any], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, torch.Tensor]]:
    """Return the optimizer's state in the form of ``optimizer.state_dict()["state"]``."""
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    positions = {parameter: index for index, parameter in enumerate(listed)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in pieces.items():
        parameter, marked, key = name.partition("::")
        if not marked:
            continue
        index = positions.get(id(own.get(parameter)))
        if index is None:
            what = f"the optimizer does not train {parameter}{did_you_mean(parameter, own)}"
            raise BadInput(what, fix="create the optimizer with the parameters of this model")
        state.setdefault(index, {})[key] = _tensor(array)
    return state


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype.name == "bfloat16":  # torch.from_numpy does not know it
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
