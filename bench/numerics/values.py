"""Compare the errors of programs whose numbers fit FP16 by range and not by digits.

``python -m bench.numerics.values [--onnx]``

Each program of ``tests/programs/values.py`` runs once in FP32, under eager autocast in FP16 and as
a compiled step; with ``--onnx`` its ONNX model runs in ONNX Runtime on a CPU, converted by us and
by two peers. An error is the largest difference from FP32 over the largest result in FP32.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import onnx
import onnxruntime
import torch

import mpcompile
from bench.machine import describe
from bench.onnx.tools import TOOLS
from bench.root import ROOT

sys.path.append(str(ROOT / "tests"))

from programs.values import BETWEEN, PROGRAMS, Program, rotary

POSITIONS = (500, 2048, 8000, 100_000, 1_000_000)
LEVELS = (mpcompile.Level.PAPER, mpcompile.Level.TENSOR_CORES_ONLY)
CONVERTERS = ("ours", "onnxconverter-common", "onnxruntime.transformers")


def programs() -> dict[str, Program]:
    """Return all programs by name."""
    return PROGRAMS | {
        f"rotary_positions_from_{start}": partial(rotary, start) for start in POSITIONS
    }


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference over the largest exact number."""
    return float((result.float() - exact).abs().max() / exact.abs().max())


def torch_errors(make: Program) -> Iterator[float]:
    """Yield the error of eager autocast, then of a step at each of `LEVELS`."""
    torch.manual_seed(0)
    model, batch = make()
    exact = model(*batch).detach()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        yield error(model(*batch), exact)

    def loss(model: torch.nn.Module, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = model(*batch)
        return result.square().mean(), result

    for level in LEVELS:
        mine = copy.deepcopy(model)
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.0)
        step = mpcompile.compile(mine, loss, optimizer, batch, policy=mpcompile.Policy(level))
        yield error(step(*batch)[1], exact)


def onnx_errors(make: Program) -> Iterator[float | str]:
    """Yield the error of each of `CONVERTERS`, or the name of what it raises."""
    torch.manual_seed(0)
    model, batch = make()
    try:
        exported = torch.onnx.export(model.eval(), batch, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError:
        yield from ["no ONNX form"] * len(CONVERTERS)
        return
    assert exported is not None
    whole = exported.model_proto
    feeds = {
        given.name: value.numpy() for given, value in zip(whole.graph.input, batch, strict=True)
    }
    exact = run(whole, feeds)
    for name in CONVERTERS:
        try:
            yield error(run(TOOLS[name](whole), feeds), exact)
        except Exception as fault:
            yield type(fault).__name__


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> torch.Tensor:
    """Return the first result of a model."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, feeds)[0]).float()


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--onnx", action="store_true", help="ONNX models instead of torch")
    in_onnx = parser.parse_args().onnx
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(4)
    warnings.simplefilter("ignore")
    names = CONVERTERS if in_onnx else ("autocast", *(level.value for level in LEVELS))
    errors: Callable[[Program], Iterator[float | str]] = onnx_errors if in_onnx else torch_errors
    print(f"| program | a layer between | {' | '.join(names)} |")
    print(f"|---|---|{'---|' * len(names)}")
    for name, make in programs().items():
        cells = (f"{e:.1e}" if isinstance(e, float) else e for e in errors(make))
        between = "yes" if name in BETWEEN else ""
        print(f"| {name.replace('_', ' ')} | {between} | {' | '.join(cells)} |", flush=True)
    print(json.dumps(describe("cpu")))


if __name__ == "__main__":
    main()
