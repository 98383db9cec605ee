"""Justify the default of the precision budget: what each budget keeps in FP32, and what it mends.

``python -m bench.numerics.budget``

Programs in which a sensitive op reads a layer's result are calibrated on their batch and compiled
with each budget, in roundings of FP16; an error is the largest difference from FP32 over the
largest result. Then the same budgets on the models and the nets of ``tests/nets``, which need none.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import mpcompile
from bench.machine import describe
from bench.numerics.values import error
from bench.root import ROOT
from mpcompile import pipeline
from mpcompile.numerics.calibration import measure_ranges
from mpcompile.plan.given import decide
from mpcompile.plan.op_table import rows_of
from mpcompile.plan.rule import PrecisionClass
from mpcompile.precision import Precision
from mpcompile.program.capture import capture
from mpcompile.program.workload import Workload, load

sys.path.append(str(ROOT / "tests"))

from nets import NETS

ROUNDING = 2.0**-11
BUDGETS = (2, 4, 8, 16, 32, None)
MODELS = ("resnet", "gpt", "lstm")
_TENSOR_CORE = rows_of(PrecisionClass.TENSOR_CORE)
_NORM = partial(nn.functional.layer_norm, normalized_shape=(32,))


def _waves(h: Tensor) -> Tensor:
    return torch.sin(30 * h)


def _offset_norm(h: Tensor, offset: float) -> Tensor:
    return _NORM(h + offset)


def _centred(h: Tensor, offset: float) -> Tensor:
    moved = h + offset
    return moved - moved.mean(-1, keepdim=True)


def _whitened(h: Tensor, offset: float) -> Tensor:
    moved = h + offset
    return moved / moved.std(-1, keepdim=True)


PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm of a layer": _NORM,
    "norm of a layer and 5": partial(_offset_norm, offset=5.0),
    "norm of a layer and 50": partial(_offset_norm, offset=50.0),
    "norm of a layer and 500": partial(_offset_norm, offset=500.0),
    "a layer and 50 less its mean": partial(_centred, offset=50.0),
    "a layer and 50 over its deviation": partial(_whitened, offset=50.0),
    "a layer less its neighbour": lambda h: h - 0.999 * h.roll(1, 0),
    "logarithm of a layer near 1": lambda h: (1 + 0.01 * h).log(),
    "waves of a layer, tensor-cores-only": _waves,
}


class Between(nn.Module):
    """An op between two layers."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.op = nn.Linear(16, 32), nn.Linear(32, 8), op

    def forward(self, x: Tensor) -> Tensor:
        """Return the result for a batch of shape (64, 16)."""
        result: Tensor = self.leave(self.op(self.enter(x)))
        return result


def loss(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and the model's result."""
    result = model(x)
    return result.square().mean(), result


def errors(name: str) -> list[float]:
    """Return the error of eager autocast, then of a step with each budget."""
    torch.manual_seed(0)
    model, batch = Between(PROGRAMS[name]), (torch.randn(64, 16),)
    exact = model(*batch).detach()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        found = [error(model(*batch), exact)]
    level = mpcompile.Level.TENSOR_CORES_ONLY if "only" in name else mpcompile.Level.PAPER
    for budget in BUDGETS:
        mine = copy.deepcopy(model)
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.0)
        ranges = mpcompile.calibrate(Workload(mine, batch, loss, optimizer))
        ranges = replace(ranges, precision_budget=budget * ROUNDING if budget else 1e9)
        step = mpcompile.compile(
            mine, loss, optimizer, batch, policy=mpcompile.Policy(level), ranges=ranges
        )
        found.append(error(step(*batch)[1], exact))
    return found


def kept() -> list[str]:
    """Return, per budget, the Tensor-Core ops of all nets that leave 16 bits."""
    counts = [0] * len(BUDGETS)
    makers: dict[str, Callable[[], Workload]] = {
        name: partial(load, str(ROOT / "models" / f"{name}.py")) for name in MODELS
    }
    for make in {**makers, **NETS}.values():
        workload = make()
        forward = capture(workload)
        ranges = measure_ranges(workload, forward, 2)
        flow = pipeline.describe(forward, mpcompile.Policy())
        for index, budget in enumerate(BUDGETS):
            limit = budget * ROUNDING if budget else 1e9
            given = replace(ranges, precision_budget=limit)
            plan = decide(flow, Precision.FP16, ranges=given)
            counts[index] += sum(
                decision.stores is Precision.FP32 and decision.rule in _TENSOR_CORE
                for decision in plan.decisions
            )
    return [str(count) for count in counts]


def main() -> None:
    """Print a table in Markdown."""
    warnings.simplefilter("ignore")
    names = [f"budget {budget}" if budget else "no budget" for budget in BUDGETS]
    print(f"| program | autocast | {' | '.join(names)} |")
    print(f"|---|---|{'---|' * len(names)}")
    for name in PROGRAMS:
        cells = (f"{found:.1e}" for found in errors(name))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"| Tensor-Core ops of the nets in FP32 |  | {' | '.join(kept())} |")
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
