"""Programs with one planted fault each; a comment ``# fault: NAME`` marks its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mpcompile import Policy, Workload


def line_of(fault: str) -> int:
    """Return the line number of a fault."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (found,) = (k for k, line in enumerate(lines, 1) if line.endswith(f"# fault: {fault}"))
    return found


class Logits(nn.Module):
    """Attention with weights so large that its logits overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.query.weight.mul_(500.0)
            self.key.weight.mul_(500.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)  # fault: logits
        mixed: torch.Tensor = torch.softmax(scores / 4096.0, dim=-1) @ self.value(x)
        return mixed


class Epsilon(nn.Module):
    """A division in which an epsilon prevents a division by zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.relu(x)
        safe = size + 1e-8  # fault: epsilon
        return size / safe  # fault: division


class Underflow(nn.Module):
    """A branch with a factor so small that its gradients vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.faint = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        faint: torch.Tensor = self.faint(x)
        return x + 1e-4 * (1e-9 * faint)  # fault: underflow


class Sum(nn.Module):
    """A running sum that grows beyond 65504."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x
        for _ in range(30):
            total = total + 3000.0  # fault: sum
        return total / 2.0**17


class Stagnation(nn.Module):
    """A running sum to which FP16 cannot add such small numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x + 4096.0
        for _ in range(40):
            total = total + 1.9  # fault: stagnation
        return total / 4096.0


class Net(nn.Module):
    """A linear, one of the modules above, a linear."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(16, 16), middle, nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.leave(self.middle(self.enter(x)))
        return result


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def program(middle: Callable[[], nn.Module]) -> Workload:
    torch.manual_seed(0)
    model = Net(middle())
    data = [(torch.randn(4, 8, 16), torch.randint(0, 4, (4, 8))) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Workload(model, data[0], loss, optimizer, data=data)


FORCED = Policy(half=("add", "div"))
"""A policy that permits the faults, which the planner otherwise prevents."""
