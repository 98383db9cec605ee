"""Options of ``mpcompile run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class OnnxRunFlags:
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


NO_ONNX_RUN_FLAGS = OnnxRunFlags()
NO_CHECKPOINT_FLAGS = CheckpointFlags()
NO_PROCESS_FLAGS = ProcessFlags()


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """How a program or a ``train.onnx`` is trained, and where that is told."""

    steps: Annotated[int, Parameter(help="Training steps.")] = 100
    flags: PlanFlags = NO_FLAGS
    backend: Annotated[
        Literal["interpreter", "inductor"] | None,
        Parameter(help="Default: inductor on CUDA, interpreter elsewhere."),
    ] = None
    log: Annotated[
        Path | None, Parameter(help="A new file for a JSON line a step: loss, scale, causes.")
    ] = None
    tensorboard: Annotated[
        Path | None, Parameter(help="A folder for the same, as TensorBoard reads it.")
    ] = None
    checkpoints: CheckpointFlags = NO_CHECKPOINT_FLAGS
    processes: ProcessFlags = NO_PROCESS_FLAGS
    onnx: OnnxRunFlags = NO_ONNX_RUN_FLAGS
    json: Json = None
    debug: Debug = False
