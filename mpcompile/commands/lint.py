"""``mpcompile lint``: find, compare with the baseline, print."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile.artifacts import write_file, write_json
from mpcompile.commands.warnings import warnings_on_one_line
from mpcompile.errors import BadInput, did_you_mean
from mpcompile.lint.baseline import Compared, baseline_of, compare, read_baseline
from mpcompile.lint.finding import Finding
from mpcompile.lint.formats import document, github, summary, text
from mpcompile.lint.program import Program
from mpcompile.lint.rules import RULES, lint
from mpcompile.lint.sarif import sarif
from mpcompile.lint.selection import RuleSelection
from mpcompile.plan.plan import read_plan
from mpcompile.plan.ranges import Ranges
from mpcompile.settings import TABLE, Settings, find_settings

CLEAN, FOUND = 0, 1


@dataclass(frozen=True)
class Wanted:
    """What of the findings is wanted, and how.

    Attributes:
        select: rules, in the place of those of the settings; empty: as the settings say.
        ignore: rules that are not wanted, besides those of the settings.
        form: ``text``, ``github``, ``sarif`` or ``json``.
        output: a file for it instead of stdout.
        baseline: a file of known findings.
        write_baseline: whether to write that file.
        exit_zero: whether findings leave the exit code at 0.
        json_to: where the JSON document goes besides.
    """

    select: tuple[str, ...]
    ignore: tuple[str, ...]
    form: str
    output: Path | None
    baseline: Path | None
    write_baseline: bool
    exit_zero: bool
    json_to: str | None


def check(
    source: str, flags: dict[str, Any], plan: Path | None, ranges: Ranges | None, wanted: Wanted
) -> int:
    """Look at a program, print what is found, and return the exit code.

    Args:
        source: a file, ``package.module:name``, or an ``.onnx`` file.
        flags: settings given on the command line.
        plan: a plan.json.
        ranges: what was measured.
        wanted: which findings, and how.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
    """
    settings = find_settings(Path.cwd())
    selection = _selection(settings, wanted)
    known = None
    if wanted.baseline is None:
        if wanted.write_baseline:
            raise BadInput("--write-baseline has no file", "", "name one with --baseline")
    elif not wanted.write_baseline:
        known = read_baseline(wanted.baseline)
    program = _program(source, settings.over(flags), plan, ranges)
    findings = lint(program, selection)
    if wanted.baseline is not None and known is None:
        write_file(wanted.baseline, baseline_of(findings).to_json(), force=True)
        sys.stderr.write(f"wrote {wanted.baseline}: {len(findings)} findings are known\n")
        return CLEAN
    found = compare(findings, known) if known is not None else Compared(findings)
    _print(found, source, program.source, wanted)
    return FOUND if found.fails and not wanted.exit_zero else CLEAN


def rules() -> None:
    """Print all rules, a line each."""
    for rule in RULES:
        sys.stdout.write(f"{rule.id}  {rule.severity.value:7}  {rule.name:24}  {rule.line}\n")


def explain(rule: str) -> None:
    """Print a rule's page; raises BadInput if there is no such rule."""
    known = {item.id: item for item in RULES}
    if rule not in known:
        where = f"there is no rule {rule!r}{did_you_mean(rule, known)}"
        raise BadInput(where, "", "`mpcompile lint --rules` lists them")
    sys.stdout.write(known[rule].text())


def _selection(settings: Settings, wanted: Wanted) -> RuleSelection:
    own = settings.lint
    known = [rule.id for rule in RULES]
    modules = dict(own.per_module_ignores)
    RuleSelection(own.select, own.ignore, modules).check(known, f"[{TABLE}.lint]")
    chosen = _split(wanted.select)
    ignored = _split(wanted.ignore)
    RuleSelection(chosen, ignored).check(known, "the command line")
    # As with ruff: --select starts anew, --ignore adds.
    return RuleSelection(
        chosen or own.select, ignored if chosen else (*own.ignore, *ignored), modules
    )


def _split(selectors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for text in selectors for part in text.split(",") if part.strip())


def _program(source: str, settings: Settings, plan: Path | None, ranges: Ranges | None) -> Program:
    given = read_plan(plan) if plan else None
    # Only one of them: a model as an ONNX file does not wait for torch.
    name = "onnx_program" if source.endswith(".onnx") else "torch_program"
    reader = import_module(f"mpcompile.lint.{name}")
    with warnings_on_one_line():
        program: Program = reader.read_program(
            source, settings.policy, given, ranges, settings.without
        )
    return program


def _print(found: Compared, source: str, origin: str, wanted: Wanted) -> None:
    people = sys.stderr if wanted.form != "text" or wanted.json_to == "-" else sys.stdout
    place = origin or source
    if wanted.form == "text":
        _text(found.new, place, wanted.output, people)
    else:
        _write(_rendered(found, place, wanted.form, source), wanted.output)
    people.write(f"{summary(found, source)}\n")
    write_json(wanted.json_to, document(found, source))


def _text(findings: tuple[Finding, ...], place: str, output: Path | None, people: Any) -> None:
    if output is not None:
        write_file(output, text(findings, place).plain, force=True)
    elif findings:
        Console(file=people, highlight=False, soft_wrap=True).print(text(findings, place), end="")


def _rendered(found: Compared, place: str, form: str, source: str) -> str:
    if form == "github":
        return github(found.new, place)
    made = sarif(found.new, place) if form == "sarif" else document(found, source)
    return json.dumps(made, indent=1) + "\n"


def _write(rendered: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(rendered)
    else:
        write_file(output, rendered, force=True)
