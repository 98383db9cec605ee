"""Compare the gradients of programs that add up thousands of terms.

``python -m bench.numerics.sums [--names LSTM ...] [--table] [--compiled] [--onnx]
[--backend NAME]``

Each program of ``tests/programs/long_sums/programs.py`` has a gradient with 6,000 contributions to
one element and more. An error is the largest, over the parameters, of the norm of the difference
from FP64 over the norm of the gradient. The ways are eager autocast, ``torch.compile`` with
autocast (with ``--compiled``), a compiled step, and its train.onnx in ONNX Runtime (with
``--onnx``), in FP16 with a static loss scale and in BF16.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import mpcompile
from bench.machine import describe
from bench.root import ROOT
from mpcompile import LossScale, Policy, Precision, Workload
from mpcompile.lower.lower import Backend
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import transform
from mpcompile.step.transformed import Choices

sys.path.append(str(ROOT / "tests"))

from programs.long_sums.programs import PROGRAMS

DTYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
LIMIT = {Precision.FP16: 0.0015, Precision.BF16: 0.012}
"""Three times the rounding of the format."""
SCALES = (2.0**14, 2.0**10, 2.0**6, 1.0)
"""Static loss scales for FP16: the first counts with which all gradients are finite."""

RATE = 2.0**16
"""The learning rate of an exported step."""

Gradients = dict[str, Tensor]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Return the mean in FP32, or in FP64 for a model in FP64."""
    result: Tensor = model(x)
    return (result if result.dtype is torch.float64 else result.float()).mean()


def exact_gradients(model: nn.Module, x: Tensor) -> Gradients:
    """Return the gradients in FP64; the model is not changed."""
    mine = copy.deepcopy(model).double()
    loss(mine, x.double() if x.is_floating_point() else x).backward()
    return gradients_of(mine)


def autocast_gradients(
    model: nn.Module, x: Tensor, precision: Precision, scale: float, compiled: bool = False
) -> Gradients:
    """Return those of autocast on a CPU, eager or compiled by inductor."""
    mine = copy.deepcopy(model)
    run = torch.compile(mine) if compiled else mine
    with torch.autocast("cpu", dtype=DTYPES[precision]):
        result = loss(run, x)  # type: ignore[arg-type]
    (result * scale).backward()
    return {name: value / scale for name, value in gradients_of(mine).items()}


def our_gradients(
    model: nn.Module,
    x: Tensor,
    precision: Precision,
    scale: float,
    backend: Backend = "interpreter",
) -> Gradients:
    """Return those of a compiled step."""
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.0)
    static = LossScale.static(scale) if precision is Precision.FP16 else None
    step = mpcompile.compile(
        mine, loss, optimizer, (x,), policy=Policy(precision=precision), verify=False,
        backend=backend, loss_scale=static,
    )  # fmt: skip
    return {name: value.double() for name, value in step.gradients(x).items()}


def exported_gradients(
    model: nn.Module, x: Tensor, precision: Precision, scale: float
) -> Gradients:
    """Return those of a train.onnx in ONNX Runtime on the CPU, from one update of the weights."""
    mine = copy.deepcopy(model)
    # The weights are small beside an update at this rate, so they take no digits from it.
    workload = Workload(mine, (x,), loss, torch.optim.SGD(mine.parameters(), lr=RATE))
    static = LossScale.static(scale) if precision is Precision.FP16 else None
    policy = Policy(precision=precision)
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "train.onnx"
        export_step(transform(workload, Choices(policy, loss_scale=static, verify=False)), path)
        step = OrtTrainStep(path)
        before = step.parameters()
        step(x.numpy())
        after = step.parameters()
    return {
        name: (torch.tensor(value).double() - torch.tensor(after[name]).double()) / RATE
        for name, value in before.items()
    }


def gradients_of(model: nn.Module) -> Gradients:
    """Return the gradients of a model in FP64."""
    return {
        name: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def error(found: Gradients, exact: Gradients) -> float:
    """Return the error of the worst parameter; a gradient of zero in theory does not count."""
    largest = max(float(value.norm()) for value in exact.values())
    errors = [
        float((found[name] - value).norm() / value.norm())
        for name, value in exact.items()
        if float(value.norm()) > 1e-9 * largest
    ]
    return max(errors)


def finite(gradients: Callable[[float], Gradients], precision: Precision) -> Gradients:
    """Return gradients with the largest of `SCALES` that gives finite ones."""
    for scale in SCALES if precision is Precision.FP16 else SCALES[-1:]:
        found = gradients(scale)
        if all(value.isfinite().all() for value in found.values()):
            break
    return found


def row(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure a program in each way: an error, or the name of what a way raises."""
    start = time.monotonic()
    model, batch = PROGRAMS[name]()
    exact = exact_gradients(model, batch)
    found: dict[str, object] = {"program": name}
    ways: dict[str, Callable[[Precision, float], Gradients]] = {
        "autocast": partial(autocast_gradients, model, batch),
        "compiled": partial(autocast_gradients, model, batch, compiled=True),
        "ours": partial(our_gradients, model, batch, backend=options.backend),
    }
    if not options.compiled:
        del ways["compiled"]
    if options.onnx:
        ways["train.onnx"] = partial(exported_gradients, model, batch)
    for precision in DTYPES:
        for way, gradients in ways.items():
            try:
                value: float | str = error(finite(partial(gradients, precision), precision), exact)
            except Exception as fault:
                value = type(fault).__name__
            found[f"{way} {precision.value}"] = value
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def cells(found: dict[str, object]) -> Iterator[str]:
    """Yield the cells of a row; an error over the limit is bold."""
    for name, value in found.items():
        if name == "seconds":
            continue
        if not isinstance(value, float):
            yield str(value)
            continue
        limit = LIMIT[Precision(name.split()[-1])]
        yield f"{value:.4f}" if value <= limit else f"**{value:.4f}**"


def main() -> None:
    """Print a line of JSON for each program, or a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--names", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    parser.add_argument("--compiled", action="store_true", help="torch.compile with autocast too")
    parser.add_argument("--onnx", action="store_true", help="train.onnx in ONNX Runtime too")
    backends = ("interpreter", "inductor")
    parser.add_argument("--backend", choices=backends, default=backends[0], help="of our step")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for number, name in enumerate(options.names):
        found = row(name, options)
        if not options.table:
            print(json.dumps(found), flush=True)
            continue
        if number == 0:
            columns = [column for column in found if column != "seconds"]
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print(f"| {' | '.join(cells(found))} |", flush=True)
    print(json.dumps({**describe("cpu"), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
