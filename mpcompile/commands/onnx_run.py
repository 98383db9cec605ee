"""``mpcompile run train.onnx``: train in ONNX Runtime, with no torch in the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from mpcompile.artifacts import check_file, write_json
from mpcompile.commands.terminal import open_terminal
from mpcompile.commands.training.progress import train
from mpcompile.errors import BadInput
from mpcompile.onnx.batches import read_batches
from mpcompile.onnx.device_memory import Array, dtype_of
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.options import RunOptions


def run(source: Path, options: RunOptions) -> None:
    """Train a step on the batches of a file, epoch after epoch.

    Args:
        source: ``train.onnx``; its description and state are beside it and stay unchanged.
        options: the data is a ``.npz`` file, see `mpcompile.onnx.batches.read_batches`; the output
            is a ``.safetensors`` file for the final state.

    Raises:
        BadInput: a file is none of these, or an argument is wrong.
    """
    steps, onnx = options.steps, options.onnx
    data, output = onnx.data, onnx.output
    if steps < 1:
        raise BadInput(f"--steps is {steps}", fix="give at least 1")
    if data is None:
        raise BadInput("there is no data to train on", str(source), "give --data FILE.npz")
    if output is not None:
        if output.suffix != ".safetensors":  # with --force it could be the step itself
            raise BadInput(
                f"{output} does not end in .safetensors",
                fix="give --output a name that ends in .safetensors",
            )
        check_file(output, onnx.force)
    console = open_terminal(options.json)
    step = OrtTrainStep(source, device=onnx.device)
    losses, seconds = train(step, _batches(step, data, steps), steps, console)
    typical = 1000 * median(seconds[1:] or seconds)
    console.print(
        f"{len(losses)} steps: loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
        f"loss scale {step.loss_scale:g}, {step.skipped} skipped, {typical:.1f} ms a step"
    )
    if output is not None:
        step.save(output)
        console.print(f"wrote {output}", markup=False)
    document = {
        "source": str(source),
        "device": onnx.device,
        "steps": len(losses),
        "taken": step.taken,
        "skipped": step.skipped,
        "loss_scale": step.loss_scale,
        "median_step_ms": round(typical, 3),
        "output": None if output is None else str(output),
        "losses": losses,
    }
    write_json(options.json, document)


def _batches(step: OrtTrainStep, data: Path, steps: int) -> Iterator[list[Array]]:
    """Yield batches, epoch after epoch; each epoch reads the file again."""
    inputs = {spec.name: (dtype_of(spec), spec.shape) for spec in step.file.batch}
    count = 0
    while True:
        for batch in read_batches(data, inputs):
            if count == steps:
                return
            yield [batch[name] for name in inputs]
            count += 1
