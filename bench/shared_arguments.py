"""Build the arguments of the command line once for many calls in one process.

Cyclopts builds all arguments of a command in each call, and Pydantic a validator for each; together
this takes 15 ms. A process that calls the command line thousands of times can share both.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pydantic
from cyclopts import App, ArgumentCollection


def share_arguments() -> None:
    """Let each call begin with a copy of what the first call has built."""
    build = App.assemble_argument_collection
    built: dict[tuple[int, str], tuple[App, ArgumentCollection]] = {}

    def assemble(self: App, **options: Any) -> ArgumentCollection:
        key = id(self), repr(options)
        if key not in built:
            built[key] = self, build(self, **options)
        arguments = built[key][1]
        fixed = [part for each in arguments for part in (each.parameter, each.field_info)]
        return copy.deepcopy(arguments, {id(part): part for part in fixed})

    App.assemble_argument_collection = assemble  # type: ignore[method-assign]
    pydantic.TypeAdapter = cache(pydantic.TypeAdapter)  # type: ignore[misc, assignment]
