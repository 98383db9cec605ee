"""A program whose activations exceed FP16's largest number and become small again."""

from __future__ import annotations

import torch
from torch import nn

from mpcompile.program.workload import Workload


class Tall(nn.Module):
    """Its hidden values are about 1e6."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        with torch.no_grad():
            self.rise.weight.mul_(1e6)
            self.fall.weight.mul_(1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fall(torch.relu(self.rise(self.norm(x))))
        return hidden


def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(nn.functional.dropout(model(x), 0.1), target)


def workload(model: nn.Module | None = None, batches: int = 3) -> Workload:
    torch.manual_seed(0)
    model = model or Tall()
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    return Workload(model, data[0], loss, optimizer, data)
