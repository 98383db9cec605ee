"""Does train.onnx train like PyTorch? Compare the losses of many steps, four ways, from one start.

``python -m bench.onnx.training [--models cnn gpt resnet lstm] [--optimizers adamw sgd]
[--size tiny] [--steps 100] [--json FILE]``

FP64 is the reference. Eager autocast in FP16 with a loss scale of 1024, our own step (pseudo FP16)
and the exported step in stock ONNX Runtime on the CPU are compared with it: the root mean square of
the differences of all losses, relative to the first loss. Dropout is off, because each way would
draw other random numbers. A planted Inf in the gradients must leave all state bit-identical, except
the scale and the counters.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file
from torch import nn

from bench.machine import describe as describe_machine
from bench.speed.variant import load
from mpcompile.lower.lower import Lowering
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.onnx_graph.gate import read_model
from mpcompile.pipeline import to_step, transform
from mpcompile.program.workload import Workload
from mpcompile.step.loss_scale import LossScale
from mpcompile.step.transformed import Choices

SCALE = 2.0**10
ALLOWED = 3.0
"""Limit of the exported step's error, in multiples of autocast's, as for all our steps."""

Losses = list[float]
Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


@dataclass(frozen=True)
class Followed:
    """The measurements of one export.

    Attributes:
        model: its name.
        optimizer: its optimizer.
        first: the first loss in FP64.
        last: the last loss in FP64.
        autocast: error of eager autocast, relative to the first loss.
        ours: error of our step in pseudo FP16.
        onnx: error of the exported step.
        skipped: whether a planted Inf left the state unchanged.
        nodes: number of nodes of the exported graph.
        seconds: time of the export.
    """

    model: str
    optimizer: str
    first: float
    last: float
    autocast: float
    ours: float
    onnx: float
    skipped: bool
    nodes: int
    seconds: float

    @property
    def within(self) -> bool:
        """Whether the exported step is as near to FP64 as it must be."""
        return self.onnx <= ALLOWED * self.autocast


def cnn() -> Workload:
    """Return a small net with batch norm, both kinds of pools, and a strided convolution."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, groups=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(32, 10),
    )
    generator = torch.Generator().manual_seed(1)
    data = [
        (
            torch.randn(16, 3, 32, 32, generator=generator),
            torch.randint(0, 10, (16,), generator=generator),
        )
        for _ in range(8)
    ]

    def loss(model: nn.Module, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(image), label)

    return Workload(model, data[0], loss, torch.optim.SGD(model.parameters()), data=data)


def made(name: str, size: str) -> Workload:
    """Return a model's workload without dropout."""
    workload = cnn() if name == "cnn" else load(name, size, "cpu")
    for module in workload.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            module.dropout = 0.0
    return workload


def follow(name: str, optimizer: str, steps: int, size: str = "tiny") -> Followed:
    """Train one model with one optimizer in all ways."""
    workload = made(name, size)
    make = OPTIMIZERS[optimizer]
    data = workload.data if workload.data is not None else [workload.batch]
    batches = [tuple(batch) for batch in islice(cycle(islice(iter(data), 16)), steps)]
    truth = list(_eager(workload, make, batches, double=True))
    peer = list(_eager(workload, make, batches, double=False))
    model = copy.deepcopy(workload.model)
    mine = Workload(model, workload.batch, workload.loss, make(list(model.parameters())))
    transformed = transform(mine, Choices(loss_scale=LossScale.static(SCALE)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.onnx"
        begin = time.perf_counter()
        export_step(transformed, file)
        seconds = time.perf_counter() - begin
        exported = OrtTrainStep(file)
        found = [float(exported(*(value.numpy() for value in batch))) for batch in batches]
        nodes = sum(1 for _ in read_model(file).graph.all_nodes())
        skipped = skips(exported, batches[0], Path(folder))
    step = to_step(transformed, Lowering(backend="interpreter"))
    ours = [float(step(*batch)) for batch in batches]
    return Followed(
        model=name,
        optimizer=optimizer,
        first=truth[0],
        last=truth[-1],
        autocast=_error(peer, truth),
        ours=_error(ours, truth),
        onnx=_error(found, truth),
        skipped=skipped,
        nodes=nodes,
        seconds=seconds,
    )


def skips(step: OrtTrainStep, batch: tuple[torch.Tensor, ...], folder: Path) -> bool:
    """Return whether an overflow keeps weights, statistics and optimizer state bit-identical.

    A scale of 2**120 makes every gradient infinite.
    """
    roles = {slot.name: slot.role for slot in step.file.state}
    scale = next(name for name, role in roles.items() if role == "scale")
    before, skipped = step.state(), step.skipped
    save_file({**before, scale: np.array(2.0**120, np.float32)}, folder / "state")
    step.load(folder / "state")
    step(*(value.numpy() for value in batch))
    after = step.state()
    return step.skipped == skipped + 1 and all(
        before[name].tobytes() == after[name].tobytes()
        for name, role in roles.items()
        if role not in ("scale", "tracker", "counter", "seed")
    )


def _eager(
    workload: Workload, make: Make, batches: Sequence[tuple[torch.Tensor, ...]], double: bool
) -> Iterator[float]:
    """Train in plain PyTorch: in FP64, or under autocast in FP16 with a loss scale."""
    assert workload.loss is not None
    model = copy.deepcopy(workload.model)
    model = model.double() if double else model
    parameters = list(model.parameters())
    optimizer = make(parameters)
    for batch in batches:
        given = [b.double() if double and b.is_floating_point() else b for b in batch]
        with torch.autocast("cpu", torch.float16, enabled=not double):
            value = workload.loss(model, *given)
        optimizer.zero_grad()
        torch.autograd.backward(value if double else value.float() * SCALE)
        for parameter in parameters:
            if parameter.grad is not None and not double:
                parameter.grad /= SCALE
        optimizer.step()
        yield float(value.detach())


def _error(found: Losses, truth: Losses) -> float:
    apart = np.array(found) - np.array(truth)
    return float(np.sqrt(np.mean(apart**2)) / abs(truth[0]))


def main() -> None:
    """Train and print a line for each model and optimizer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    models = ["cnn", "gpt", "resnet", "lstm"]
    parser.add_argument("--models", nargs="+", default=models, choices=models)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    console = Console()
    console.print(describe_machine("cpu"))
    table = Table(title=f"losses of {options.steps} steps against FP64, size {options.size}")
    columns = ("model", "optimizer", "loss", "autocast", "ours", "ONNX", "within", "skip", "nodes")
    for column in (*columns, "export s"):
        table.add_column(column, justify="left" if column in ("model", "optimizer") else "right")
    one = partial(follow, steps=options.steps, size=options.size)
    rows = [one(model, optimizer) for model in options.models for optimizer in options.optimizers]
    for row in rows:
        table.add_row(
            row.model,
            row.optimizer,
            f"{row.first:.3f} -> {row.last:.3f}",
            *(f"{error:.2e}" for error in (row.autocast, row.ours, row.onnx)),
            "yes" if row.within else "NO",
            "yes" if row.skipped else "NO",
            str(row.nodes),
            f"{row.seconds:.1f}",
        )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
