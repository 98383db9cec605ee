"""What the programs share."""

# torch gives `Function.apply` no types.
# mypy: disable-error-code="no-untyped-call,no-any-return,untyped-decorator"

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Program = tuple[nn.Module, Callable[..., torch.Tensor]]
FUNCTIONS: dict[str, Callable[[], Program]] = {}


def add(function: Callable[[], Program]) -> Callable[[], Program]:
    FUNCTIONS[function.__name__] = function
    return function


def squared(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((model(x) - y) ** 2).mean()


class Between(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor], width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 8)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


def between(middle: Callable[[torch.Tensor], torch.Tensor]) -> Program:
    return Between(middle), squared
