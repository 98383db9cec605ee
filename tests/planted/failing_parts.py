"""Small programs that fail in FP16, each in a different way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mpcompile import LossScale, Policy, Workload
from mpcompile.lower.lower import Lowering
from mpcompile.numerics.lockstep import Moment, moment
from mpcompile.numerics.node_errors import TOLERANCE, check
from mpcompile.numerics.nonfinite import first_nonfinite
from mpcompile.pipeline import to_step, transform
from mpcompile.search.reduce import Reduced, failing_node, reduce
from mpcompile.step.transformed import Choices


class Attention(nn.Module):
    """Attention with logits that are not divided by the root of the width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2)
        mixed: torch.Tensor = torch.softmax(scores, -1) @ self.v(x)
        return mixed


class Unit(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().amax(-1, keepdim=True) + 1e-8)


class RunningSum(nn.Module):
    """Adds numbers one by one, each with a factor: a plain sum would be added in FP32."""

    def __init__(self, start: float, step: float) -> None:
        super().__init__()
        self.start, self.step = start, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x[:, 0]) + self.start
        for i in range(x.shape[1]):
            total = torch.add(total, x[:, i], alpha=self.step)
        return total


def square(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), y)


def tiny(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), y) * 1e-6


def trained(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss: Callable[..., torch.Tensor] = square,
) -> Workload:
    return Workload(model, (x, y), loss, torch.optim.SGD(model.parameters(), lr=0.01))


def attention() -> Workload:
    torch.manual_seed(0)
    return trained(Attention(), 120 * torch.randn(4, 16, 32), torch.randn(4, 16, 32))


def epsilon() -> Workload:
    torch.manual_seed(0)
    first = nn.Linear(16, 32)
    nn.init.zeros_(first.bias)
    model = nn.Sequential(first, nn.ReLU(), Unit(), nn.Linear(32, 4))
    x = torch.randn(8, 16)
    x[3] = 0
    return trained(model, x, torch.randn(8, 4))


def underflow() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return trained(model, torch.randn(8, 16), torch.randn(8, 4), tiny)


def saturating() -> Workload:
    torch.manual_seed(0)
    # In FP16 the sum of 1 and a number below 2**-11 is 1.
    model = nn.Sequential(nn.Linear(16, 40), nn.Sigmoid(), RunningSum(1.0, 6e-4))
    return trained(model, torch.randn(8, 16), torch.randn(8))


def overflowing() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), RunningSum(60000.0, 1.0))
    return trained(model, 2048 * torch.randn(8, 16), torch.randn(8))


def own_fault() -> Workload:
    """Return a program that is infinite in FP64 too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.LogSoftmax(-1))
    return trained(model, torch.full((8, 16), torch.inf), torch.randn(8, 4))


def healthy() -> Workload:
    torch.manual_seed(0)
    return trained(nn.Linear(16, 4), torch.randn(8, 16), torch.randn(8, 4))


@dataclass(frozen=True)
class Planted:
    """A program, how to transform it, and the op kinds of the smallest part that fails."""

    workload: Callable[[], Workload]
    half: tuple[str, ...]
    ops: tuple[str, ...]
    scale: LossScale | None = None
    tolerance: float = TOLERANCE

    @property
    def flags(self) -> list[str]:
        """Return the same options for the command line."""
        scale = ["--loss-scale", "none"] if self.scale is not None else []
        halves = [text for op in self.half for text in ("--half", op)]
        return [*halves, *scale, "--tolerance", str(self.tolerance)]


PLANTED = {
    "attention": Planted(attention, (), ("bmm",)),
    "epsilon": Planted(epsilon, ("add", "div"), ("add", "div")),
    "underflow": Planted(underflow, (), ("mm",), LossScale.none()),
    "saturating": Planted(saturating, ("add",), ("add",) * 35, tolerance=0.01),
    "overflowing": Planted(overflowing, ("add",), ("add",)),
}


def moment_of(case: Planted) -> tuple[Moment, str]:
    """Return the inputs of a step and its first failing node."""
    workload = case.workload()
    step = to_step(
        transform(workload, Choices(policy=Policy(half=case.half), loss_scale=case.scale)),
        Lowering(backend="interpreter"),
    )
    for _ in range(25):
        step(*workload.batch)
        if step.taken:
            break
    rows, now = check(step, *workload.batch), moment(step, *workload.batch)
    row = failing_node(rows, first_nonfinite(now), case.tolerance)
    assert row is not None
    return now, row.id


def reduced_of(case: Planted) -> Reduced:
    now, name = moment_of(case)
    return reduce(now, name, case.tolerance)
