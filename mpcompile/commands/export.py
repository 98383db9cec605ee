"""``mpcompile export model.py --to train.onnx``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import write_json
from mpcompile.commands.load_program import transform_source
from mpcompile.commands.warnings import warnings_on_one_line
from mpcompile.errors import BadInput, printable
from mpcompile.onnx.forward_export import export_forward
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.ranges import Ranges
from mpcompile.precision import Precision
from mpcompile.program.workload import load
from mpcompile.settings import Settings, find_settings


def export(
    source: str,
    to: Path,
    kind: str | None,
    dynamic: bool,
    flags: dict[str, Any],
    plan: Path | None,
    ranges: Ranges | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Write a training step or a forward pass; see `mpcompile.cli.export.export`.

    Raises:
        BadInput: the file's name or the flags do not fit the kind.
        CannotCapture: the program cannot be expressed in ONNX.
    """
    console = Console(stderr=json_to == "-", highlight=False)
    if to.suffix != ".onnx":
        raise BadInput(f"{to} is no name for an ONNX file", fix="let it end in .onnx")
    settings = find_settings(Path.cwd()).over(flags)
    start = time.perf_counter()
    if kind is None:
        kind = "forward" if to.name == "forward.onnx" or load(source).loss is None else "step"
    if kind == "forward":
        if plan is not None or ranges is not None:
            raise BadInput(
                "a plan or ranges of a program do not fit its ONNX graph",
                fix="export it, then rewrite the ONNX file with --plan or --ranges",
            )
        document = _forward(source, to, settings, dynamic, force, console)
    else:
        if dynamic:
            raise BadInput("a training step has one batch size", fix="leave out --dynamic")
        document = _step(source, to, settings, plan, ranges, force, console)
    document["seconds"] = round(time.perf_counter() - start, 2)
    console.print(printable(f"wrote {', '.join(document['files'])}"), markup=False)
    write_json(json_to, {"source": source, "kind": kind, **document})


def _forward(
    source: str, to: Path, settings: Settings, dynamic: bool, force: bool, console: Console
) -> dict[str, Any]:
    workload = load(source)
    with console.status("exporting"), warnings_on_one_line():
        policy = settings.policy
        # No CPU has kernels for BF16, so that who asks for it asks for a GPU.
        target = Target.CUDA if policy.precision is Precision.BF16 else Target.ANY
        done = export_forward(workload, to, policy, target=target, dynamic=dynamic, force=force)
    nodes = sum(1 for _ in done.model.graph.all_nodes())
    console.print(f"{nodes} nodes, {done.casts} of them casts")
    for line in done.notes if done.changed else ("nothing to win: the model stays in FP32",):
        console.print(printable(line), markup=False)
    return {"files": [str(to)], "nodes": nodes, "casts": done.casts}


def _step(
    source: str,
    to: Path,
    settings: Settings,
    plan: Path | None,
    ranges: Ranges | None,
    force: bool,
    console: Console,
) -> dict[str, Any]:
    transformed = transform_source(source, settings, plan, ranges, console)
    with console.status("exporting"):
        described = export_step(transformed, to, force)
    console.print(
        f"{len(described.state)} tensors of state, {len(described.batch)} of the batch, "
        f"{len(described.rates)} learning rates"
    )
    files = [to, to.with_suffix(".json"), to.with_name(described.weights)]
    return {"files": [str(file) for file in files], "state": len(described.state)}
