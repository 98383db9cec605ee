"""``mpcompile lint``: find, compare with the baseline, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from mpcompile import lint as linter
from mpcompile.artifacts import write_file, write_json
from mpcompile.commands.plan_inputs import PlanInputs
from mpcompile.commands.terminal import warnings_on_one_line
from mpcompile.errors import BadInput, did_you_mean
from mpcompile.lint.baseline import (
    BaselineComparison,
    baseline_of,
    compare_with_baseline,
    read_baseline,
)
from mpcompile.lint.finding import Finding
from mpcompile.lint.formats import document, github, summary, text
from mpcompile.lint.program import Program
from mpcompile.lint.rules import RULES
from mpcompile.lint.rules import lint as findings_of
from mpcompile.lint.sarif import sarif
from mpcompile.lint.selection import RuleSelection
from mpcompile.options import LintOptions
from mpcompile.settings import TABLE, LintSettings

CLEAN, FOUND = 0, 1


def lint(source: str, options: LintOptions, inputs: PlanInputs) -> int:
    """Check a program, print the findings, and return the exit code.

    Args:
        source: a file, ``package.module:name``, or an ``.onnx`` file.
        options: which findings, and how they are printed.
        inputs: how it is planned; the settings also say which findings are wanted.

    Raises:
        BadInput, CannotCapture: the program or an argument is wrong.
    """
    selection = _selection(inputs.settings.lint, options)
    known = None
    if options.baseline is None:
        if options.write_baseline:
            raise BadInput("--write-baseline needs a file", fix="give it with --baseline")
    elif not options.write_baseline:
        known = read_baseline(options.baseline)
    program = _program(source, inputs)
    findings = findings_of(program, selection)
    if options.baseline is not None and known is None:
        write_file(options.baseline, baseline_of(findings).to_json(), force=True)
        sys.stderr.write(f"wrote {options.baseline}: {len(findings)} known findings\n")
        return CLEAN
    found = (
        compare_with_baseline(findings, known)
        if known is not None
        else BaselineComparison(findings)
    )
    _print(found, source, program.source, options)
    return FOUND if found.fails and not options.exit_zero else CLEAN


def print_rules() -> None:
    """Print all rules, one per line."""
    for rule in RULES:
        sys.stdout.write(f"{rule.id}  {rule.severity.value:7}  {rule.name:24}  {rule.line}\n")


def print_page(rule: str) -> None:
    """Print a rule's page; raises BadInput if there is no such rule."""
    known = {item.id: item for item in RULES}
    if rule not in known:
        where = f"there is no rule {rule!r}{did_you_mean(rule, known)}"
        raise BadInput(where, fix="`mpcompile lint --rules` lists them")
    sys.stdout.write(known[rule].text())


def _selection(own: LintSettings, options: LintOptions) -> RuleSelection:
    known = [rule.id for rule in RULES]
    modules = dict(own.per_module_ignores)
    RuleSelection(own.select, own.ignore, modules).check(known, f"[{TABLE}.lint]")
    chosen = _split(options.select)
    ignored = _split(options.ignore)
    RuleSelection(chosen, ignored).check(known, "the command line")
    # As with ruff: --select replaces the selection, --ignore adds to it.
    return RuleSelection(
        chosen or own.select, ignored if chosen else (*own.ignore, *ignored), modules
    )


def _split(selectors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for text in selectors for part in text.split(",") if part.strip())


def _program(source: str, inputs: PlanInputs) -> Program:
    # Only one of the two is loaded: an ONNX file does not wait for torch.
    onnx = source.endswith(".onnx")
    read = linter.onnx_program.read_program if onnx else linter.torch_program.read_program
    settings = inputs.settings
    with warnings_on_one_line():
        return read(source, settings.policy, inputs.plan, inputs.ranges, settings.without)


def _print(found: BaselineComparison, source: str, origin: str, options: LintOptions) -> None:
    people = sys.stderr if options.format != "text" or options.json == "-" else sys.stdout
    place = origin or source
    if options.format == "text":
        _text(found.new, place, options.output, people)
    else:
        _write(_rendered(found, place, options.format, source), options.output)
    people.write(f"{summary(found, source)}\n")
    write_json(options.json, document(found, source))


def _text(findings: tuple[Finding, ...], place: str, output: Path | None, people: Any) -> None:
    if output is not None:
        write_file(output, text(findings, place).plain, force=True)
    elif findings:
        Console(file=people, highlight=False, soft_wrap=True).print(text(findings, place), end="")


def _rendered(found: BaselineComparison, place: str, form: str, source: str) -> str:
    if form == "github":
        return github(found.new, place)
    made = sarif(found.new, place) if form == "sarif" else document(found, source)
    return json.dumps(made, indent=1) + "\n"


def _write(rendered: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(rendered)
    else:
        write_file(output, rendered, force=True)
