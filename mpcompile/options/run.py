"""Options of ``mpcompile run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Check, Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class OnnxRunFlags:
    """What only a training step as a ``train.onnx`` takes."""

    data: Annotated[
        Path | None,
        Parameter(help="For a train.onnx: an .npz file with its batches by input name."),
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"], Parameter(help="For a train.onnx: where it runs.")
    ] = "cpu"
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"],
            help="For a train.onnx: a .safetensors file for its last state.",
        ),
    ] = None
    force: Annotated[bool, Parameter(help="Replace an existing file of --output.", negative=())] = (
        False
    )


@Parameter(name="*")
@dataclass(frozen=True)
class CheckpointFlags:
    """When a run is saved, so that it can go on."""

    out: Annotated[
        Path | None, Parameter(help="A folder for checkpoints; one is saved at the end.")
    ] = None
    checkpoint_every: Annotated[
        int | None, Parameter(help="Also save a checkpoint each time after this number of steps.")
    ] = None
    resume: Annotated[
        bool,
        Parameter(help="Continue from the newest complete checkpoint in --out.", negative=()),
    ] = False
    keep: Annotated[int, Parameter(help="The number of newest checkpoints that stay in --out.")] = 3


@Parameter(name="*")
@dataclass(frozen=True)
class ProcessFlags:
    """How the processes that torchrun has started share a step."""

    shard: Annotated[
        bool,
        Parameter(
            help="With torchrun: each process holds a slice of masters and optimizer (ZeRO-1).",
            negative=(),
        ),
    ] = False
    reduce: Annotated[
        Literal["float32", "float16", "bfloat16"],
        Parameter(help="With torchrun: the precision of the all-reduce of gradients."),
    ] = "float32"


NO_ONNX_RUN_FLAGS = OnnxRunFlags()
NO_CHECKPOINT_FLAGS = CheckpointFlags()
NO_PROCESS_FLAGS = ProcessFlags()


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """How a program or a ``train.onnx`` is trained, and where that is told."""

    steps: Annotated[int, Parameter(help="The number of training steps.")] = 100
    flags: PlanFlags = NO_FLAGS
    backend: Annotated[
        Literal["interpreter", "inductor"] | None,
        Parameter(help="What runs the step; default: inductor on CUDA, interpreter elsewhere."),
    ] = None
    log: Annotated[
        Path | None, Parameter(help="A new file for one JSON line per step: loss, scale, causes.")
    ] = None
    tensorboard: Annotated[
        Path | None, Parameter(help="A folder for the same data, for TensorBoard.")
    ] = None
    checkpoints: CheckpointFlags = NO_CHECKPOINT_FLAGS
    processes: ProcessFlags = NO_PROCESS_FLAGS
    onnx: OnnxRunFlags = NO_ONNX_RUN_FLAGS
    check: Check = True
    json: Json = None
    debug: Debug = False
