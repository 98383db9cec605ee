"""Compare the nodes that overflow FP16 later with those that calibration named before.

    python -m bench.numerics.overflow_recall [--seed 0] [--nodes 100]

Random programs contain nodes with results near 65504. Each is calibrated on a few batches,
trained in FP32, and then run on other batches, once per planted node with that one node in FP16.
Calibration names the tensors that a plan with its ranges keeps in FP32: those that came closer to
65504 than two bits.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from bench.machine import describe
from mpcompile import LossScale, Policy, Workload, calibrate, compile
from mpcompile.numerics.lockstep import moment
from mpcompile.numerics.nonfinite import first_nonfinite
from mpcompile.plan.ranges import Ranges
from mpcompile.program.capture import capture

WIDTH, ROWS, BLOCKS, STEPS, BATCHES = 24, 32, 5, 20, 6
Batch: TypeAlias = tuple[Any, ...]
OPS = ("mul", "pow", "exp", "linear", "matmul", "cumsum", "add")


class Block(nn.Module):
    """A layer norm, an op whose result is large, and a division that makes it small again."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.gain: float = 1.0
        self.norm = nn.LayerNorm(WIDTH)
        self.weight = nn.Linear(WIDTH, WIDTH) if op == "linear" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the shape of x."""
        large = self.large(x)
        return x + torch.tanh(large / self.gain)

    def large(self, x: torch.Tensor) -> torch.Tensor:
        """Return a result that may overflow; except for exp, it is proportional to the gain."""
        hidden, gain = self.norm(x) + 0.1 * x, self.gain
        made: torch.Tensor
        match self.op:
            case "mul":
                made = hidden * gain
            case "pow":
                made = (hidden * math.sqrt(gain)).pow(2)
            case "exp":
                made = torch.exp(hidden + math.log(gain))
            case "linear":
                made = self.weight(hidden)
            case "matmul":
                made = (hidden * gain) @ hidden.transpose(-1, -2) @ (hidden / ROWS)
            case "cumsum":
                made = torch.cumsum(hidden * gain, dim=0)
            case _:
                made = hidden * (gain / 2) + hidden * (gain / 2)
        return made


class Net(nn.Module):
    """Blocks one after the other, and a head."""

    def __init__(self, ops: list[str]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(op) for op in ops)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for rows of x."""
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x)
        return result


@dataclass(frozen=True)
class Outcome:
    """One node of one program.

    Attributes:
        program: the program's seed.
        node: its op in the plan.
        overflowed: whether it produced infinities in the later run.
        named: whether calibration had named it.
    """

    program: int
    node: str
    overflowed: bool
    named: bool


def program(seed: int) -> Workload:
    """Return a program with planted nodes, and batches whose sizes vary."""
    chosen = random.Random(seed)
    torch.manual_seed(seed)
    model = Net([chosen.choice(OPS) for _ in range(BLOCKS)])
    batches = [
        (torch.randn(ROWS, WIDTH) * chosen.lognormvariate(0, 0.3), torch.randint(0, 4, (ROWS,)))
        for _ in range(3 * BATCHES)
    ]
    x = batches[0][0]
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, Block)
            size = float(block.large(x).abs().max())
            block.gain = 65504.0 * 2.0 ** chosen.uniform(-2.0, 4.0) / size
            for parameter in block.weight.parameters():
                parameter.mul_(block.gain)
            x = block(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Workload(model, batches[0], loss, optimizer, data=batches[:BATCHES])


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy."""
    return nn.functional.cross_entropy(model(x), y)


def outcomes(seed: int) -> Iterator[Outcome]:
    """Yield the outcome of each node that can be in FP16 and is no cast or view."""
    made = program(seed)
    assert made.loss is not None
    assert made.optimizer is not None
    ranges = calibrate(made, BATCHES)
    later: list[Batch] = [
        (torch.randn_like(x) * random.Random(f"{seed}.{k}").lognormvariate(0, 0.3), y)
        for k, (x, y) in enumerate(made.data or ())
    ]
    train(made, later)
    for node in large_nodes(made, later):
        policy = Policy(full=("*",), half=(f"node:{node}",))
        step = compile(
            made.model,
            made.loss,
            made.optimizer,
            made.batch,
            policy=policy,
            loss_scale=LossScale.static(1.0),
            backend="interpreter",
        )
        causes = [first_nonfinite(moment(step, *batch)) for batch in later]
        overflowed = any(cause is not None and node in cause.keep for cause in causes)
        yield Outcome(seed, node, overflowed, is_named(ranges, node))


def train(made: Workload, batches: list[Batch]) -> None:
    """Train in plain FP32, so that weights differ from those at calibration."""
    assert made.loss is not None
    assert made.optimizer is not None
    for k in range(STEPS):
        made.optimizer.zero_grad()
        torch.autograd.backward(made.loss(made.model, *batches[k % len(batches)]))
        made.optimizer.step()
        nn.utils.clip_grad_norm_(made.model.parameters(), 1.0)


def large_nodes(made: Workload, batches: list[Batch]) -> list[str]:
    """Return the ops with results near or beyond 65504 in FP32 on the later batches."""
    now = Workload(made.model, made.batch, made.loss, made.optimizer, data=batches)
    found = calibrate(now, len(batches)).values
    ops = [n.name for n in capture(made).module.graph.nodes if n.op == "call_function"]
    return [name for name in ops if name in found and found[name].largest > 65504.0 / 8]


def is_named(ranges: Ranges, node: str) -> bool:
    """Return whether a plan keeps a node in FP32 because it is within two bits of 65504."""
    return bool(ranges.values[node].largest_finite > 65504.0 / 2**ranges.margin_bits)


def main() -> None:
    """Print recall and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=100, help="nodes that overflow")
    options = parser.parse_args()
    found: list[Outcome] = []
    seed = options.seed
    while sum(item.overflowed for item in found) < options.nodes:
        found += outcomes(seed)
        seed += 1
    overflowed = [item for item in found if item.overflowed]
    named = [item for item in found if item.named]
    hits = sum(item.named for item in overflowed)
    print(f"{seed - options.seed} programs, {len(found)} nodes near 65504 or beyond")
    print(
        f"overflowed later: {len(overflowed)}; named before: {hits} ({hits / len(overflowed):.1%})"
    )
    right = sum(item.overflowed for item in named)
    print(f"named: {len(named)}; overflowed later: {right} ({right / max(len(named), 1):.1%})")
    for item in overflowed:
        if not item.named:
            print(f"missed: program {item.program}, {item.node}")
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
