"""``mpcompile inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mpcompile.cli.app import NO_FLAGS, AnySource, Debug, Flags, Json, app
from mpcompile.errors import BadInput


@Parameter(name="*")
@dataclass(frozen=True)
class Filters:
    """Which nodes are shown."""

    module: Annotated[
        tuple[str, ...],
        Parameter(
            help="Only modules of this path, and those in them (wildcards; repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    op: Annotated[
        tuple[str, ...],
        Parameter(help="Only this op (wildcards; repeatable).", negative=(), show_default=False),
    ] = ()
    in_precision: Annotated[
        tuple[Literal["f16", "bf16", "f32", "both", "other"], ...],
        Parameter(
            name="--in",
            help="Only what is in this precision (repeatable).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    stage: Annotated[
        tuple[Literal["forward", "backward", "update"], ...],
        Parameter(help="Only this stage (repeatable).", negative=(), show_default=False),
    ] = ()

    def selection(self) -> Any:
        """Return them as the package has them."""
        tables = import_module("mpcompile.show.tables")
        return tables.NodeSelection(self.module, self.op, self.in_precision, self.stage)


_NO_FILTERS = Filters()


@app.command
def inspect(
    source: AnySource,
    *,
    filters: Filters = _NO_FILTERS,
    all: Annotated[bool, Parameter(help="Cut no table short.", negative=())] = False,
    format: Annotated[
        Literal["text", "csv"], Parameter(help="Tables, or a comma-separated row a node.")
    ] = "text",
    model_explorer: Annotated[
        Path | None, Parameter(help="A folder for files that Model Explorer reads.")
    ] = None,
    check: Annotated[
        Path | None, Parameter(help="What `mpcompile check --json` wrote, for its errors there.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace those files.", negative=())] = False,
    device: Annotated[
        Literal["h100", "h200", "a100", "v100", "cpu", "all"],
        Parameter(help="Whose bound; cpu is measured here, all compares the others."),
    ] = "h100",
    flags: Flags = NO_FLAGS,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show what runs in which precision, every cast, what is kept, memory, and the costs.

    Of a program it also prints what each pass changed and the least time that a step can take on a
    device.
    """
    del debug
    if check is not None and model_explorer is None:
        raise BadInput("--check goes into files for Model Explorer", "", "give --model-explorer")
    command = import_module("mpcompile.commands.inspect")
    shown = command.Shown(filters.selection(), all, format == "csv", model_explorer, check, force)
    command.inspect(source, device, flags.given(), flags.plan, flags.measured(), shown, json)
