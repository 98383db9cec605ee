"""The dictionaries of a module and the hooks on tensors, for which torch has no public reader."""

from __future__ import annotations

from typing import Any

import torch

MEMBERS = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that hold its parameters, buffers and submodules by name."""

HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
"""Attributes of a module that hold the hooks of its call, and what one of them is called."""

INTERNAL = frozenset(vars(torch.nn.Module())) - {"training"}
"""Attributes that torch keeps for itself in every module."""


def hooks_of(tensor: torch.Tensor) -> list[Any]:
    """Return the hooks on a tensor: for its gradient, and after it was added to ``grad``."""
    found: list[Any] = []
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        found += (getattr(tensor, name, None) or {}).values()
    return found
