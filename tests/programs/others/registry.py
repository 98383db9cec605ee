"""Programs as other people write them, one for each kind: a model, a loss and a batch.

Each runs in eager PyTorch, and is compiled as one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Program = Callable[[], tuple[nn.Module, Callable[..., Any], Any]]

PROGRAMS: dict[str, Program] = {}


def program(make: Program) -> Program:
    PROGRAMS[make.__name__] = make
    return make


class Net(nn.Module):
    """A net whose forward is a function of its parts."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


def mlp(inputs: int = 16, outputs: int = 5, width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def classes(size: int, count: int = 5) -> Tensor:
    return torch.arange(size) % count
