"""The program of the files here, which version 0.1.0 wrote before modules had rooms."""

import torch
from torch import nn

import mpcompile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.relu(self.norm(self.embed(x))))
        return result


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def workload() -> mpcompile.Workload:
    torch.manual_seed(0)
    model = Net()
    batches = [(torch.randn(12, 8), torch.randint(0, 4, (12,))) for _ in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return mpcompile.Workload(model, batches[0], loss, optimizer, data=batches)
