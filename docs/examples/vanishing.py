"""A norm whose epsilon is below the smallest FP16 number: ``mpcompile reduce vanishing.py``."""

import torch
from torch import nn

import mpcompile


class Unit(nn.Module):
    """Divide each row by its largest magnitude."""

    def forward(self, x):
        """Return rows whose largest magnitude is 1."""
        return x / (x.abs().amax(-1, keepdim=True) + 1e-8)


def loss(model, x, y):
    """Mean square of the difference."""
    return nn.functional.mse_loss(model(x), y)


def workload():
    """Return four layers, and a batch in which one row is all zeros."""
    torch.manual_seed(0)
    first = nn.Linear(16, 32, bias=False)
    model = nn.Sequential(first, nn.ReLU(), Unit(), nn.Linear(32, 4))
    x = torch.randn(8, 16)
    x[3] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return mpcompile.Workload(model, (x, torch.randn(8, 4)), loss, optimizer)
