"""Options of ``mpcompile export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json
from mpcompile.options.plan_flags import NO_FLAGS, PlanFlags


@Parameter(name="*")
@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and to which file."""

    to: Annotated[Path, Parameter(help="The .onnx file to write.")]
    kind: Annotated[
        Literal["step", "forward"] | None,
        Parameter(
            help="Export the whole training step, or the model for inference; default: forward for "
            "forward.onnx and for a program without a loss."
        ),
    ] = None
    dynamic: Annotated[
        bool, Parameter(help="Leave the batch size of the forward pass open.", negative=())
    ] = False
    flags: PlanFlags = NO_FLAGS
    force: Annotated[bool, Parameter(help="Replace existing files.", negative=())] = False
    json: Json = None
    debug: Debug = False
