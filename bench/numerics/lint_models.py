"""Run lint on the models of this project and measure its time.

``python -m bench.numerics.lint_models [--full] [--long 10000]``

Reads every program of ``models/`` (``--full``: at its full size too), every net of ``tests/nets/``,
and each program of ``models/`` as the ONNX file that ``mpcompile export`` writes in FP32. They have
no planted faults, so every finding must be justified. ``--long`` instead times a chain of that many
ops: capture, and the time that lint adds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.machine import describe as describe_machine
from bench.root import ROOT
from mpcompile.cli import exit_code
from mpcompile.lint.onnx_program import read_program
from mpcompile.lint.program import Program
from mpcompile.lint.rules import RULES, lint
from mpcompile.lint.torch_program import program_of
from mpcompile.plan.policy import Policy
from mpcompile.program.capture import capture
from mpcompile.program.workload import Workload, load

sys.path.append(str(ROOT / "tests"))

from nets import NETS

MODELS = ("bert", "dcgan", "gpt", "lstm", "resnet", "tacotron", "unet")


def planned(workload: Workload) -> Program:
    """Capture and plan a workload like `mpcompile lint`."""
    return program_of(workload, capture(workload), Policy())


def exported(name: str, folder: Path) -> Program:
    """Export a model of ``models/`` for inference in FP32, and read the file."""
    path = folder / f"{name}.onnx"
    to = ["--to", str(path), "--kind", "forward", "--precision", "fp32"]
    if exit_code(["export", str(ROOT / "models" / f"{name}.py"), *to]):
        raise RuntimeError(f"{name} was not exported")
    return read_program(str(path), Policy())


def programs(full: bool, folder: Path) -> dict[str, Callable[[], Program]]:
    """Return, by name, the function that makes each program."""

    def model(name: str, size: str) -> Program:
        os.environ["SIZE"] = size
        return planned(load(str(ROOT / "models" / f"{name}.py")))

    made: dict[str, Callable[[], Program]] = {}
    for name in MODELS:
        made[f"models/{name}.py"] = lambda name=name: model(name, "small")  # type: ignore[misc]
        if full:
            made[f"models/{name}.py, full"] = lambda name=name: model(name, "full")  # type: ignore[misc]
    for name in MODELS:
        made[f"{name}.onnx{', full' if full else ''}"] = lambda name=name: exported(name, folder)  # type: ignore[misc]
    for name, net in NETS.items():
        made[f"tests/nets: {name}"] = lambda net=net: planned(net())  # type: ignore[misc]
    return made


class Block(nn.Module):
    """Ten ops; one has an epsilon that FP16 cannot represent."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map FP32 ``[N, 16]`` to the same shape."""
        y = self.linear(self.norm(x))
        y = (y * torch.sigmoid(y) + 0.5).view(2, -1, 16).transpose(0, 1).transpose(0, 1)
        y = y.reshape(-1, 16)
        result: torch.Tensor = x + y / (y.abs() + 1e-8)
        return result


def chain(ops: int) -> Workload:
    """Return a program of about `ops` ops."""
    model = nn.Sequential(*(Block() for _ in range(ops // 12)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(model, (torch.randn(8, 16),), lambda m, x: m(x).mean(), optimizer)


def time_chain(ops: int, console: Console) -> None:
    """Print the time of capture, and of lint after it: planning, reading, rules."""
    workload = chain(ops)
    start = perf_counter()
    forward = capture(workload)
    captured = perf_counter()
    program = program_of(workload, forward, Policy())
    read = perf_counter()
    found = lint(program)
    done = perf_counter()
    console.print(
        f"{sum(node.row != 'source' for node in program.nodes):,} ops: capture "
        f"{captured - start:.2f} s; plan and rows {read - captured:.2f} s, {len(RULES)} rules "
        f"{done - read:.2f} s, {len(found):,} findings"
    )


def main() -> None:
    """Read the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--long", type=int)
    given = parser.parse_args()
    console = Console(highlight=False)
    console.print(describe_machine("cpu"))
    if given.long:
        time_chain(given.long, console)
        return
    table = Table("program", "ops", "errors", "warnings", "notes", "rules")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in programs(given.full, Path(folder)).items():
            program = make()
            found = lint(program)
            counts = Counter(finding.severity.value for finding in found)
            rules = Counter(finding.rule for finding in found)
            said = ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items()))
            ops = sum(node.row != "source" for node in program.nodes)
            cells = (str(counts[kind]) for kind in ("error", "warning", "note"))
            table.add_row(name, f"{ops:,}", *cells, said)
    console.print(table)


if __name__ == "__main__":
    main()
