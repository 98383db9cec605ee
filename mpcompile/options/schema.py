"""Options of ``mpcompile schema``."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter

from mpcompile.options.arguments import Debug


@Parameter(name="*")
@dataclass(frozen=True)
class SchemaOptions:
    """The common option only."""

    debug: Debug = False
