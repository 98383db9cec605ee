"""The hooks of an optimizer's ``step()``, which a compiled step runs after its update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpcompile.errors import BadInput
from mpcompile.torch_private.guarding import step_hooks


def hooks_after_update(optimizer: torch.optim.Optimizer) -> list[Callable[..., Any]]:
    """Return the hooks that run after ``optimizer.step()``, in their order.

    Raises:
        BadInput: there is a hook that runs before it: such hooks read ``grad`` of parameters, and
            gradients of a compiled step are not stored there.
    """
    before, after = step_hooks(optimizer)
    if before:
        name = getattr(before[0], "__qualname__", type(before[0]).__name__)
        raise BadInput(
            f"the optimizer has a step pre-hook ({name}), which would see no gradients",
            fix="remove it; clip with max_grad_norm, and change gradients by hooks on parameters",
        )
    return after


def run_hooks(hooks: list[Callable[..., Any]], optimizer: torch.optim.Optimizer) -> None:
    """Run the hooks after an update, with the arguments of ``optimizer.step()``."""
    for hook in hooks:
        hook(optimizer, (optimizer,), {})
