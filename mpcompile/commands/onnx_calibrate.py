"""``mpcompile calibrate model.onnx``: measure what each tensor of a model holds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from mpcompile.artifacts import check_file, write_file, write_json
from mpcompile.commands.terminal import open_terminal
from mpcompile.errors import BadInput
from mpcompile.onnx.batches import read_batches
from mpcompile.onnx.measure import calibrate as measure
from mpcompile.onnx.sessions import input_types
from mpcompile.onnx_graph.gate import read_model
from mpcompile.options import CalibrateOptions


def calibrate(source: Path, options: CalibrateOptions) -> None:
    """Measure what a model's tensors hold on the batches of a file.

    Raises:
        BadInput: the file is no valid model, or an argument is wrong.
    """
    console = open_terminal(options.json)
    if options.batches < 1:
        raise BadInput(f"--batches is {options.batches}", fix="give at least 1")
    if options.data is None:
        raise BadInput("there is no data to measure", str(source), "give --data FILE.npz")
    file = options.output or source.with_name(f"{source.stem}.ranges.json")
    check_file(file, options.force)
    model = read_model(source)
    with console.status("measuring"):
        found = measure(
            model, islice(read_batches(options.data, input_types(model)), options.batches)
        )
    write_file(file, found.to_json() + "\n", options.force)
    console.print(f"measured {len(found.values)} tensors on {found.batches} batches", markup=False)
    console.print(f"wrote {file}", markup=False)
    write_json(
        options.json,
        {
            "source": str(source),
            "output": str(file),
            "batches": found.batches,
            "tensors": len(found.values),
        },
    )
