"""Training or evaluation mode of each part of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

Modes = Mapping[torch.nn.Module, bool]


def modes_of(model: torch.nn.Module) -> dict[torch.nn.Module, bool]:
    """Return per module whether it is in training mode."""
    return {module: module.training for module in model.modules()}


def evaluation_modes(model: torch.nn.Module) -> dict[torch.nn.Module, bool]:
    """Return the modes that ``model.eval()`` would set."""
    return dict.fromkeys(model.modules(), False)


@contextmanager
def in_modes(modes: Modes) -> Iterator[None]:
    """Put modules in these modes inside a ``with`` block."""
    before = {module: module.training for module in modes}
    try:
        for module, training in modes.items():
            module.training = training
        yield
    finally:
        for module, training in before.items():
            module.training = training
