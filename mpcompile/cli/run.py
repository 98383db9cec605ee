"""``mpcompile run``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, Debug, Flags, Json, Source, app
from mpcompile.errors import BadInput


@Parameter(name="*")
@dataclass(frozen=True)
class TrainFlags:
    """What only a training step as a ``train.onnx`` takes."""

    data: Annotated[
        Path | None, Parameter(help="Of a train.onnx: an .npz with its batches by input.")
    ] = None
    device: Annotated[Literal["cpu", "cuda"], Parameter(help="Of a train.onnx: where it runs.")] = (
        "cpu"
    )
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="Of a train.onnx: a .safetensors for its state."),
    ] = None
    force: Annotated[bool, Parameter(help="Replace that file.", negative=())] = False


@Parameter(name="*")
@dataclass(frozen=True)
class CheckpointFlags:
    """When a run is saved, so that it can go on."""

    out: Annotated[
        Path | None, Parameter(help="A folder for checkpoints, one at the end at least.")
    ] = None
    checkpoint_every: Annotated[
        int | None, Parameter(help="Save a checkpoint to --out every so many steps.")
    ] = None
    resume: Annotated[
        bool,
        Parameter(help="Go on from the newest complete checkpoint in --out.", negative=()),
    ] = False
    keep: Annotated[int, Parameter(help="Checkpoints that stay in --out.")] = 3


@Parameter(name="*")
@dataclass(frozen=True)
class ProcessFlags:
    """How the processes that torchrun has started share a step."""

    shard: Annotated[
        bool,
        Parameter(help="Of torchrun: a slice of masters and optimizer each (ZeRO-1).", negative=()),
    ] = False
    reduce: Annotated[
        Literal["float32", "float16", "bfloat16"],
        Parameter(help="Of torchrun: the precision in which gradients travel."),
    ] = "float32"


_NO_TRAIN_FLAGS, _NO_CHECKPOINTS, _NO_PROCESSES = TrainFlags(), CheckpointFlags(), ProcessFlags()


@app.command
def run(
    source: Source,
    *,
    steps: Annotated[int, Parameter(help="Training steps.")] = 100,
    flags: Flags = NO_FLAGS,
    backend: Annotated[
        Literal["interpreter", "inductor"] | None,
        Parameter(help="Default: inductor on CUDA, interpreter elsewhere."),
    ] = None,
    log: Annotated[
        Path | None, Parameter(help="A new file for a JSON line a step: loss, scale, causes.")
    ] = None,
    tensorboard: Annotated[
        Path | None, Parameter(help="A folder for the same, as TensorBoard reads it.")
    ] = None,
    checkpoints: CheckpointFlags = _NO_CHECKPOINTS,
    processes: ProcessFlags = _NO_PROCESSES,
    onnx: TrainFlags = _NO_TRAIN_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> int:
    """Train a program in mixed precision on its own data, or a train.onnx on --data.

    If a step has to be skipped, it says which node made the first number that is not finite. With
    --out, SIGTERM and Ctrl-C finish the step and save it; it then exits with 143 or 130. On many
    processes: ``torchrun --nproc-per-node 4 -m -- mpcompile run model.py``, where each takes every
    fourth batch.
    """
    del debug
    if source.endswith(".onnx"):
        if backend or flags != NO_FLAGS:
            raise BadInput(f"{source} was planned when it was exported", fix="leave out its flags")
        if log or tensorboard:
            raise BadInput(f"{source} keeps no log", fix="leave out --log and --tensorboard")
        if checkpoints != _NO_CHECKPOINTS:
            raise BadInput(f"{source} keeps no checkpoints", fix="leave out --out and the like")
        if processes != _NO_PROCESSES:
            raise BadInput(f"{source} runs alone", fix="leave out --shard and --reduce")
        command = import_module("mpcompile.commands.onnx_run")
        command.run(Path(source), onnx.data, steps, onnx.device, onnx.output, onnx.force, json)
        return 0
    if onnx != _NO_TRAIN_FLAGS:
        raise BadInput(f"{source} is no .onnx file", fix="leave out --data, --output and the like")
    given = {**flags.given(), **({"backend": backend} if backend else {})}
    saving = import_module("mpcompile.commands.saved_run").Saving(
        checkpoints.out, checkpoints.checkpoint_every, checkpoints.resume, checkpoints.keep
    )
    command = import_module("mpcompile.commands.run")
    code: int = command.run(
        source,
        steps,
        given,
        flags.plan,
        flags.measured(),
        saving,
        command.Told(log, tensorboard, json),
        shard=processes.shard,
        reduce=processes.reduce,
    )
    return code
