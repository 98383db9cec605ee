"""Options of ``mpcompile diff``."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter

from mpcompile.options.arguments import Debug, Json


@Parameter(name="*")
@dataclass(frozen=True)
class DiffOptions:
    """Where the comparison goes."""

    json: Json = None
    debug: Debug = False
