"""``mpcompile lint``."""

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
class LintFlags:
    """Which findings, and how."""

    select: Annotated[
        tuple[str, ...],
        Parameter(
            help="Rules by id or its beginning (MP1, MP201 or ALL; repeatable, or with commas).",
            negative=(),
            show_default=False,
        ),
    ] = ()
    ignore: Annotated[
        tuple[str, ...],
        Parameter(help="Rules to leave out; the longer id wins.", negative=(), show_default=False),
    ] = ()
    format: Annotated[
        Literal["text", "github", "sarif", "json"], Parameter(help="What is printed.")
    ] = "text"
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="A file for that, not stdout.")
    ] = None
    baseline: Annotated[
        Path | None, Parameter(help="A file of known findings, which are not found again.")
    ] = None
    write_baseline: Annotated[
        bool, Parameter(help="Write that file: all that is found is known.", negative=())
    ] = False
    exit_zero: Annotated[bool, Parameter(help="Exit with 0 whatever is found.", negative=())] = (
        False
    )


_NO_LINT_FLAGS = LintFlags()


@app.command
def lint(
    source: Source | None = None,
    *,
    checks: LintFlags = _NO_LINT_FLAGS,
    flags: Flags = NO_FLAGS,
    rules: Annotated[bool, Parameter(help="List the rules.", negative=())] = False,
    explain: Annotated[str | None, Parameter(help="Print the page of a rule: MP103.")] = None,
    json: Json = None,
    debug: Debug = False,
) -> int:
    """Find what goes wrong or slows down in 16 bits, each with its fix; exit 1 if there is any.

    Notes do not count: they say what mpcompile copes with.
    """
    del debug
    command = import_module("mpcompile.commands.lint")
    if rules or explain is not None:
        command.rules() if rules else command.explain(explain)
        return 0
    if source is None:
        raise BadInput("there is nothing to look at", fix="name a program or an .onnx file")
    wanted = command.Wanted(
        checks.select,
        checks.ignore,
        checks.format,
        checks.output,
        checks.baseline,
        checks.write_baseline,
        checks.exit_zero,
        json,
    )
    code: int = command.check(source, flags.given(), flags.plan, flags.measured(), wanted)
    return code
