"""``mpcompile bench``."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from cyclopts import Parameter

from mpcompile.cli.app import Debug, Json, Source, app


@app.command
def bench(
    source: Source,
    *,
    steps: Annotated[int, Parameter(help="Timed steps a way.")] = 30,
    warmup: Annotated[int, Parameter(help="Steps before them, after the first.")] = 5,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Time a program's step beside eager FP32, autocast and torch.compile with autocast.

    Each way runs in a process of its own on the example batch, and compiles from an empty cache: in
    FP16 on CUDA, in BF16 on a CPU.
    """
    del debug
    import_module("mpcompile.commands.bench").bench(source, steps, warmup, json)
