"""One model of the zoo: compiled, trained ten steps, and judged beside eager PyTorch."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import mpcompile
from mpcompile import CompileError, InexactStep, LossScale
from mpcompile.integrations import compiling
from mpcompile.program.tracing.export import export
from mpcompile.program.tracing.traced_program import TracedProgram
from mpcompile.program.workload import Workload

STEPS = 10
SCALES = (2.0**10, 2.0**4, 1.0)
"""Loss scales for the comparison; the first with which our gradients are finite is used."""
FACTOR = 3.0
"""How many times the error of eager autocast is allowed."""
NOISE = 1e-3
"""Below this part of the gradient no error counts: FP16 rounds each number by up to half of it."""

Loss = Callable[..., Any]


def called(function: Any, batch: Any, *before: Any) -> Any:
    """Call a function with a batch, as a user would."""
    if isinstance(batch, Mapping):
        return function(*before, **batch)
    return function(*before, *batch)


def gradients(model: nn.Module, loss: Loss, batch: Any, scale: float = 1.0) -> dict[str, Any]:
    """Return eager gradients of a copy; the loss is under ``"loss"``."""
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    value = called(loss, batch, model)
    torch.autograd.backward(value.float() * scale)
    found = {n: p.grad / scale for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": value.detach().float(), **found}


def distance(found: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]) -> float:
    """Return the relative L2 distance of all gradients."""
    names = [name for name in exact if name != "loss"]
    wrong = sum(float((found[n].double() - exact[n].double()).square().sum()) for n in names)
    whole = sum(float(exact[n].double().square().sum()) for n in names)
    return float((wrong / max(whole, 1e-30)) ** 0.5)


def trial(model: nn.Module, loss: Loss, batch: Any) -> dict[str, Any]:
    """Compile and train a model; return what became of it.

    The model has run in eager PyTorch before. The keys: ``state`` (whole, pieces, refused or
    traceback), ``error``, ``seconds``, ``before_lowering`` (of these), ``export`` (seconds of
    `torch.export` alone), ``inexact`` (what the check of the first batch says), ``skipped``,
    ``scales`` (before and after the first step),
    ``ours`` and ``autocast`` (distances of the first gradients from FP32, the second its error if
    it has one), ``near``, ``losses``.
    """
    row: dict[str, Any] = {}
    exact = gradients(model, loss, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    try:
        row["export"] = _export_seconds(copy.deepcopy(model), loss, batch)
        with warnings.catch_warnings(record=True) as caught, _timed(row):
            warnings.simplefilter("always")
            step = mpcompile.compile(model, loss, optimizer, batch, backend="interpreter")
        said = [str(item.message) for item in caught if item.category is InexactStep]
        row |= {"inexact": said[0][:300]} if said else {}
        row["state"] = "pieces" if step.captured.in_pieces else "whole"
        start = copy.deepcopy(model)
        before = step.loss_scale
        row["losses"] = [float(called(step, batch))]
        row["scales"] = [before, step.loss_scale]
        row["losses"] += [float(called(step, batch)) for _ in range(1, STEPS)]
        row["skipped"] = step.skipped
    except CompileError as error:
        return row | {"state": "refused", "error": str(error)[:400]}
    except Exception as error:
        return row | {"state": "traceback", "error": f"{type(error).__name__}: {error}"[:400]}
    for scale in SCALES:
        judged = mpcompile.compile(
            start,
            loss,
            torch.optim.SGD(start.parameters(), lr=0.0),
            batch,
            backend="interpreter",
            loss_scale=LossScale.static(scale),
            verify=False,
        )
        torch.manual_seed(0)
        mine, peer = called(judged.gradients, batch), _autocast(start, loss, batch, scale)
        row["scale"], row["ours"] = scale, distance(mine, exact)
        row["autocast"] = distance(peer, exact) if isinstance(peer, dict) else peer
        if math.isfinite(row["ours"]):
            break
    judges = isinstance(row["autocast"], float) and math.isfinite(row["autocast"])
    row["near"] = not judges or row["ours"] <= FACTOR * row["autocast"] + NOISE
    return row


@contextmanager
def _timed(row: dict[str, Any]) -> Iterator[None]:
    """Note the seconds until a step is compiled, and of them those before it is lowered."""
    module: Any = compiling
    prove = module.prove

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return prove(*arguments)
        finally:
            row["before_lowering"] = time.perf_counter() - begin

    module.prove = timed
    begin = time.perf_counter()
    try:
        yield
    finally:
        module.prove = prove
        row["seconds"] = time.perf_counter() - begin


def _autocast(model: nn.Module, loss: Loss, batch: Any, scale: float) -> dict[str, Any] | str:
    """Return the gradients of eager autocast, or its error."""
    try:
        with torch.autocast("cpu", dtype=torch.float16):
            return gradients(model, loss, batch, scale)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


def _export_seconds(model: nn.Module, loss: Loss, batch: Any) -> float | None:
    workload = Workload(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    begin = time.perf_counter()
    try:
        export(TracedProgram(workload), workload)
    except CompileError:
        return None
    return time.perf_counter() - begin
