"""Programs for the tests of lint: a function between two linears, a loss, a policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mpcompile import Policy, Workload
from mpcompile.lint.finding import Finding
from mpcompile.lint.rules import lint
from mpcompile.lint.torch_program import program_of
from mpcompile.program.capture import capture


class Between(nn.Module):
    """A linear, the tested function, and a linear."""

    def __init__(
        self, what: Callable[..., torch.Tensor], width: int = 8, held: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, 8)
        self.what = what
        self.register_buffer("held", torch.zeros(1) if held is None else held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.leave(self.what(self.enter(x), self.held))
        return result


def mean_square(model: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(*batch), torch.zeros(()))


def findings(
    model: nn.Module,
    *batch: torch.Tensor,
    loss: Callable[..., torch.Tensor] = mean_square,
    policy: Policy | None = None,
    rule: str = "",
) -> list[Finding]:
    """Return the findings of lint in a program that is trained with AdamW."""
    workload = Workload(model, batch, loss, torch.optim.AdamW(model.parameters()))
    program = program_of(workload, capture(workload), policy or Policy())
    return [finding for finding in lint(program) if finding.rule.startswith(rule)]


def between(
    what: Callable[..., torch.Tensor],
    *,
    rows: int = 4,
    width: int = 8,
    held: torch.Tensor | None = None,
    policy: Policy | None = None,
    rule: str = "",
) -> list[Finding]:
    """Return the findings of lint in `Between`."""
    model = Between(what, width, held)
    return findings(model, torch.randn(rows, width), policy=policy, rule=rule)


def line_of(file: str, marker: str) -> int:
    """Return the one line of a file that ends with a marker."""
    lines = Path(file).read_text().splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return found
