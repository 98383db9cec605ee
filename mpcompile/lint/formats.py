"""Findings as text, GitHub commands and JSON; SARIF has its own file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from mpcompile import __version__
from mpcompile.errors import printable
from mpcompile.lint.baseline import BaselineComparison
from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.rules import RULES
from mpcompile.plan.dataflow import Where
from mpcompile.program.stack_lines import relative

VERSION = 1
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
_NAMES = {rule.id: rule.name for rule in RULES}


def text(findings: Sequence[Finding], source: str) -> Text:
    """Return findings as text for a terminal, two lines each.

    Args:
        findings: the findings to show.
        source: the program, named for findings without a file.
    """
    lines = Text()
    for finding in findings:
        style = _STYLES[finding.severity]
        lines.append(printable(f"{_place(finding.where, source)}: "))
        lines.append(f"{finding.severity.value}[{finding.rule}]", style)
        lines.append(f" {printable(finding.text)}\n")
        lines.append(f"    {printable(_at(finding))}; fix: {printable(finding.fix)}\n", "dim")
    return lines


def summary(found: BaselineComparison, source: str) -> str:
    """Return one line that counts the findings, and those that the baseline hides."""
    counts = Counter(finding.severity for finding in found.new)
    parts = [_count(counts[severity], severity.value) for severity in Severity if counts[severity]]
    old = f"; {_count(found.known, 'finding')} of the baseline not shown" if found.known else ""
    gone = f"; {_count(found.gone, 'finding')} of the baseline gone" if found.gone else ""
    new = " new" if found.compared else ""
    return f"{source}: {', '.join(parts) if parts else f'no{new} findings'}{old}{gone}"


def github(findings: Sequence[Finding], source: str) -> str:
    """Return workflow commands, with which GitHub marks lines of a pull request.

    Escaped as GitHub's runner expects: ``%``, line ends, and in properties ``:`` and ``,``.
    """
    lines = []
    for finding in findings:
        where = finding.where
        properties = {"file": relative(where.file or source)}
        if where.file and where.line:
            properties["line"] = str(where.line)
        properties["title"] = f"{finding.rule} {_NAMES[finding.rule]}"
        said = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        message = _data(f"{finding.text} ({_at(finding)}). Fix: {finding.fix}.")
        lines.append(f"::{_COMMANDS[finding.severity]} {said}::{message}\n")
    return "".join(lines)


def document(found: BaselineComparison, source: str) -> dict[str, Any]:
    """Return findings as one JSON document."""
    counts = Counter(finding.severity.value for finding in found.new)
    return {
        "schema_version": VERSION,
        "mpcompile_version": __version__,
        "source": source,
        "findings": [
            {
                "rule": finding.rule,
                "name": _NAMES[finding.rule],
                "severity": finding.severity.value,
                "message": finding.message,
                "detail": finding.detail,
                "fix": finding.fix,
                "node": finding.node,
                "op": finding.op,
                "module": finding.where.module,
                "file": relative(finding.where.file),
                "line": finding.where.line,
                "page": f"docs/lint/{finding.rule}.md",
            }
            for finding in found.new
        ],
        "counts": {severity.value: counts[severity.value] for severity in Severity},
        "known": found.known,
        "gone": found.gone,
    }


def _place(where: Where, source: str) -> str:
    return f"{relative(where.file)}:{where.line}" if where.file else relative(source)


def _at(finding: Finding) -> str:
    module = f" in {finding.where.module}" if finding.where.module else ""
    return f"{finding.node}{module}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
