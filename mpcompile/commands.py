"""What the commands do, once torch is loaded."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpcompile.artifacts import check_free, write_folder
from mpcompile.errors import BadInput
from mpcompile.graph_text import graph_text
from mpcompile.loss_scale import LossScale
from mpcompile.lower_torch import Backend
from mpcompile.pipeline import Transformed, to_step
from mpcompile.pipeline import transform as transform_workload
from mpcompile.policy import FULL_PRECISION, Policy
from mpcompile.precision import Precision
from mpcompile.report import print_summary, summarize
from mpcompile.train_step import TrainStep
from mpcompile.workload import Workload, load

_PRECISIONS = {"fp16": Precision.FP16, "bf16": Precision.BF16, "fp32": Precision.FP32}


def transform(
    source: str,
    output: Path | None,
    precision: str,
    full: tuple[str, ...],
    half: tuple[str, ...],
    loss_scale: str,
    force: bool,
    json_to: str | None,
) -> None:
    """``mpcompile model.py``: transform, print the summary, write the artifacts."""
    console = Console(stderr=json_to == "-", highlight=False)
    folder = output or Path(f"{_name(source)}.mp")
    check_free(folder, force)
    policy, scale = _policy(precision, full, half), _scale(loss_scale)
    workload = load(source)
    with console.status("transforming"):
        mixed = transform_workload(workload, policy, scale)
        plain = transform_workload(workload, FULL_PRECISION)
        summary = summarize(mixed, plain)
    files = {
        "plan.json": mixed.plan.to_json() + "\n",
        "summary.json": json.dumps(summary.to_dict(), indent=1) + "\n",
        "forward.before.txt": graph_text(plain.forward.module.graph) + "\n",
        "forward.after.txt": graph_text(mixed.forward.module.graph) + "\n",
        "decisions.txt": _decisions(mixed),
    }
    if mixed.step is not None:
        files["step.txt"] = f"{mixed.step}\n"
    write_folder(folder, files, force)
    print_summary(summary, f"{source} in {precision}", console)
    console.print(f"wrote {folder}/: {', '.join(files)}")
    _write_json(json_to, {"source": source, "output": str(folder), **summary.to_dict()})


def run(
    source: str,
    steps: int,
    precision: str,
    full: tuple[str, ...],
    half: tuple[str, ...],
    loss_scale: str,
    backend: Backend | None,
    json_to: str | None,
) -> None:
    """``mpcompile run model.py``: train on the workload's own data."""
    if steps < 1:
        raise BadInput(f"--steps is {steps}", "", "give at least 1")
    console = Console(stderr=json_to == "-", highlight=False)
    policy, scale = _policy(precision, full, half), _scale(loss_scale)
    workload = load(source)
    with console.status("transforming"):
        transformed = transform_workload(workload, policy, scale)
    if workload.data is None:
        raise BadInput(
            "the workload has no data", workload.origin, "give data=, an iterable of batches"
        )
    step = to_step(transformed, backend)
    losses, seconds = _train(step, workload, steps, console)
    typical = 1000 * median(seconds[1:] or seconds)
    document = {
        "source": source,
        "precision": precision,
        "backend": step.backend,
        "steps": len(losses),
        "taken": step.taken,
        "skipped": step.skipped,
        "loss_scale": step.loss_scale,
        "median_step_ms": round(typical, 3),
        "losses": losses,
    }
    console.print(
        f"{len(losses)} steps: loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
        f"loss scale {step.loss_scale:g}, {step.skipped} skipped, {typical:.1f} ms a step"
    )
    _write_json(json_to, document)


def _train(
    step: TrainStep, workload: Workload, steps: int, console: Console
) -> tuple[list[float], list[float]]:
    """Train with a progress bar; return losses and seconds per step."""
    values: list[torch.Tensor] = []
    seconds: list[float] = []
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  scale {task.fields[scale]}  {task.fields[skipped]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=steps, loss="-", scale="-", skipped="")
        shown = 0.0
        for batch in _batches(workload, steps):
            start = time.perf_counter()
            values.append(step(*batch))
            seconds.append(time.perf_counter() - start)
            bar.advance(task)
            # The bar reads the loss from the device, so it does that a few times a second only.
            if time.perf_counter() - shown > 0.25 or len(values) == steps:
                bar.update(
                    task,
                    loss=f"{float(values[-1]):.4f}",
                    scale=f"{step.loss_scale:g}",
                    skipped=f"{step.skipped} skipped",
                )
                shown = time.perf_counter()
    return [float(value) for value in values], seconds


def _batches(workload: Workload, steps: int) -> Iterator[tuple[Any, ...]]:
    """Yield batches, an epoch after another."""
    assert workload.data is not None
    count = 0
    while count < steps:
        before = count
        for batch in workload.data:
            if count == steps:
                return
            yield batch if isinstance(batch, tuple) else tuple(batch)
            count += 1
        if count == before:
            raise BadInput(
                "the workload's data gave no batch", workload.origin, "make it iterable repeatedly"
            )


def _name(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix == ".py" else source.partition(":")[0].rpartition(".")[2]


def _policy(precision: str, full: tuple[str, ...], half: tuple[str, ...]) -> Policy:
    return Policy(_PRECISIONS[precision], full=full, half=half)


def _scale(text: str) -> LossScale | None:
    if text == "":
        return None
    if text == "dynamic":
        return LossScale()
    if text == "none":
        return LossScale.none()
    try:
        return LossScale.static(float(text))
    except ValueError:
        raise BadInput(f"--loss-scale is {text!r}", "", "give dynamic, none or a number") from None


def _decisions(mixed: Transformed) -> str:
    rows = [
        (d.op, d.kind, d.computes.short, d.stores.short, str(d.where), d.reason)
        for d in mixed.plan.decisions
    ]
    head = ("node", "op", "computes", "stores", "where", "why")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines) + "\n"


def _write_json(target: str | None, document: dict[str, Any]) -> None:
    if target is None:
        return
    text = json.dumps(document) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")
