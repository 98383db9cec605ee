"""Time ``mpcompile inspect`` after capture, on a forward graph of about 10,000 ops.

``python -m bench.compile_time.inspect_large --ops 10000`` prints seconds: of loading and
transforming the program, then of all other work of the command, without and with JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from unittest.mock import patch

import torch
from torch import nn

from bench.machine import describe
from mpcompile.commands import inspect
from mpcompile.commands.load_view import Opened
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.options import InspectOptions
from mpcompile.pipeline import transform
from mpcompile.program.workload import Workload
from mpcompile.settings import Settings
from mpcompile.show.of_step import view_of

_OPS_A_BLOCK = 5


class Block(nn.Module):
    """Norm, linear, GELU, scale and residual sum: five ops of the forward graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the input's shape."""
        y: torch.Tensor = x + nn.functional.gelu(self.linear(self.norm(x))) * 0.5
        return y


def workload(ops: int) -> Workload:
    """Return a program whose forward graph has about `ops` ops."""
    model = nn.Sequential(*(Block(32) for _ in range(ops // _OPS_A_BLOCK)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Workload(
        model, (torch.randn(16, 32),), lambda model, x: model(x).square().mean(), optimizer
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", type=int, default=10_000)
    arguments = parser.parse_args()
    print(json.dumps(describe("cpu")))
    begin = time.perf_counter()
    made = transform(workload(arguments.ops))
    print(f"capture, plan, differentiate, passes: {time.perf_counter() - begin:.2f} s")
    found: list[Opened] = []

    def opened(*_: object) -> Opened:
        found.append(Opened(view_of(made, "large.py"), made))
        return found[-1]

    inputs = PlanInputs(Settings())
    for json_to, what in ((None, "inspect"), ("-", "inspect --json -")):
        begin = time.perf_counter()
        with (
            patch.object(inspect, "load_view", opened),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            inspect.inspect("large.py", InspectOptions(json=json_to), inputs)
        seconds = time.perf_counter() - begin
        nodes = found[-1].view.nodes
        ops = sum(node.role == "op" and node.stage == "forward" for node in nodes)
        print(f"{what} of {ops:,} ops forward, {len(nodes):,} nodes in all: {seconds:.2f} s")


if __name__ == "__main__":
    main()
