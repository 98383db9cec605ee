"""Options of ``mpcompile bench``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json


@Parameter(name="*")
@dataclass(frozen=True)
class BenchOptions:
    """How long a program's step is timed."""

    steps: Annotated[int, Parameter(help="Timed steps of each variant.")] = 30
    warmup: Annotated[
        int, Parameter(help="Untimed steps before them, in addition to the first step.")
    ] = 5
    json: Json = None
    debug: Debug = False
