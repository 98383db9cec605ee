"""``mpcompile export model.py --to train.onnx``."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from mpcompile.artifacts import write_json
from mpcompile.commands.load_program import load_program
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import open_terminal, warnings_on_one_line
from mpcompile.errors import BadInput, printable
from mpcompile.onnx.forward_export import export_forward
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx_graph.kernels import Target
from mpcompile.options import ExportOptions
from mpcompile.precision import Precision
from mpcompile.program.workload import load


def export(source: str, options: ExportOptions, inputs: PlanInputs) -> None:
    """Write a training step or a forward pass.

    Raises:
        BadInput: the file's name or the flags do not fit the kind.
        CannotCapture: the program cannot be expressed in ONNX.
    """
    console = open_terminal(options.json)
    to, kind = options.to, options.kind
    if to.suffix != ".onnx":
        raise BadInput(f"{to} does not end in .onnx", fix="give --to a name that ends in .onnx")
    start = time.perf_counter()
    if kind is None:
        kind = "forward" if to.name == "forward.onnx" or load(source).loss is None else "step"
    if kind == "forward":
        if inputs.plan_file is not None or inputs.ranges is not None:
            raise BadInput(
                "--plan and --ranges of a program do not fit its ONNX graph",
                fix="export without them, then rewrite the .onnx file with its own --plan or "
                "--ranges",
            )
        document = _forward(source, options, inputs, console)
    else:
        if options.dynamic:
            raise BadInput(
                "a training step is exported for one batch size", fix="leave out --dynamic"
            )
        document = _step(source, options, inputs, console)
    document["seconds"] = round(time.perf_counter() - start, 2)
    console.print(printable(f"wrote {', '.join(document['files'])}"), markup=False)
    write_json(options.json, {"source": source, "kind": kind, **document})


def _forward(
    source: str, options: ExportOptions, inputs: PlanInputs, console: Console
) -> dict[str, Any]:
    workload = load(source)
    with console.status("exporting"), warnings_on_one_line():
        policy = inputs.settings.policy
        # No CPU has kernels for BF16, so a request for BF16 is a request for a GPU.
        target = Target.CUDA if policy.precision is Precision.BF16 else Target.ANY
        done = export_forward(
            workload,
            options.to,
            policy,
            target=target,
            dynamic=options.dynamic,
            force=options.force,
        )
    nodes = sum(1 for _ in done.model.graph.all_nodes())
    console.print(f"{nodes} nodes, {done.casts} of them casts")
    for line in (
        done.notes if done.changed else ("no op gains from 16 bits: the model stays in FP32",)
    ):
        console.print(printable(line), markup=False)
    return {"files": [str(options.to)], "nodes": nodes, "casts": done.casts}


def _step(
    source: str, options: ExportOptions, inputs: PlanInputs, console: Console
) -> dict[str, Any]:
    transformed = load_program(source, inputs, console)
    with console.status("exporting"):
        described = export_step(transformed, options.to, options.force)
    console.print(
        f"{len(described.state)} tensors of state, {len(described.batch)} of the batch, "
        f"{len(described.rates)} learning rates"
    )
    to = options.to
    files = [to, to.with_suffix(".json"), to.with_name(described.weights)]
    return {"files": [str(file) for file in files], "state": len(described.state)}
