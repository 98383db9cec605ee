"""Findings as SARIF 2.1.0 (OASIS), for GitHub's code scanning and for editors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from mpcompile import __version__
from mpcompile.lint.finding import Finding
from mpcompile.lint.rules import RULES, LintRule
from mpcompile.program.stack_lines import relative

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "SRCROOT"
_POSITIONS = {rule.id: position for position, rule in enumerate(RULES)}


def sarif(findings: Sequence[Finding], source: str) -> dict[str, Any]:
    """Return a log with one run, all rules and the findings as results.

    Args:
        findings: the findings to show.
        source: the program, named for findings without a file.
    """
    seen: Counter[tuple[str, str, str, str]] = Counter()
    results = []
    for finding in findings:
        results.append(_result(finding, source, seen[finding.identity]))
        seen[finding.identity] += 1
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "mpcompile",
                        "semanticVersion": __version__,
                        "rules": [_rule(rule) for rule in RULES],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {
                    _ROOT: {"description": {"text": "The folder in which mpcompile ran."}}
                },
                "results": results,
            }
        ],
    }


def _rule(rule: LintRule) -> dict[str, Any]:
    page = rule.text()
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": f"{rule.line[:1].upper()}{rule.line[1:]}."},
        "fullDescription": {"text": f"{rule.line[:1].upper()}{rule.line[1:]}."},
        "help": {"text": page, "markdown": page},
        "helpUri": f"urn:mpcompile:lint:{rule.id}",
        "defaultConfiguration": {"level": rule.severity.value},
    }


def _result(finding: Finding, source: str, before: int) -> dict[str, Any]:
    """Return one result.

    Args:
        finding: the finding.
        source: the file to name if the finding has none.
        before: how many equal findings came before it.
    """
    where = finding.where
    location: dict[str, Any] = {"artifactLocation": _file(where.file or source)}
    if where.file and where.line:
        location["region"] = {"startLine": where.line}
    logical = [{"name": finding.node, "kind": "member", "fullyQualifiedName": _path(finding)}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": _POSITIONS[finding.rule],
        "level": finding.severity.value,
        "message": {"text": _plain(f"{finding.text}. Fix: {finding.fix}.")},
        "locations": [{"physicalLocation": location, "logicalLocations": logical}],
        "partialFingerprints": {"finding/v1": _fingerprint(finding, before)},
    }


def _path(finding: Finding) -> str:
    return f"{finding.where.module}.{finding.node}" if finding.where.module else finding.node


def _file(path: str) -> dict[str, str]:
    """Return a file's location, relative to the working folder if the file is inside it."""
    short = Path(relative(path))
    if short.is_absolute():
        return {"uri": short.as_uri()}
    return {"uri": _quoted(short), "uriBaseId": _ROOT}


def _quoted(path: Path) -> str:
    root = Path("/")
    return (root / path).as_uri().removeprefix(root.as_uri())


def _fingerprint(finding: Finding, before: int) -> str:
    """Return a value that stays the same when lines move, and differs between equal findings."""
    return sha256("\0".join((*finding.identity, str(before))).encode()).hexdigest()


def _plain(text: str) -> str:
    """Escape the characters that SARIF reads as a link or a placeholder (3.11.5 and 3.11.6)."""
    for sign in "\\[]":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("{", "{{").replace("}", "}}")
