"""Findings as text, GitHub commands, SARIF and JSON; texts from a model are harmless."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis.strategies import builds, integers, sampled_from, text
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from root import ROOT

from mpcompile.lint import formats
from mpcompile.lint.baseline import BaselineComparison
from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.rules import RULES
from mpcompile.lint.sarif import sarif
from mpcompile.plan.dataflow import Where

FINDING = Finding(
    "MP101",
    Severity.WARNING,
    "the constant 1e+06 does not fit, 100% sure",
    "use: less",
    "add",
    "add",
    Where("block", "/src/net,1:x.py", 7),
)
HOSTILE = builds(
    Finding,
    sampled_from([rule.id for rule in RULES]),
    sampled_from(Severity),
    text(),
    text(),
    text(),
    text(),
    builds(Where, text(), text(), integers(0, 9999)),
    text(),
)


def test_text() -> None:
    made = formats.text([FINDING], "net.py").plain
    assert made == (
        "/src/net,1:x.py:7: warning[MP101] the constant 1e+06 does not fit, 100% sure\n"
        "    add in block; fix: use: less\n"
    )
    bare = Finding("MP101", Severity.NOTE, "m", "f", "n", "add", Where())
    assert formats.text([bare], "net.onnx").plain.startswith("net.onnx: note[MP101] m\n")


def test_github_commands_are_escaped_as_the_runner_expects() -> None:
    assert formats.github([FINDING], "net.py") == (
        "::warning file=/src/net%2C1%3Ax.py,line=7,title=MP101 overflowing-constant::"
        "the constant 1e+06 does not fit, 100%25 sure (add in block). Fix: use: less.\n"
    )


def undone(command: str) -> tuple[str, dict[str, str], str]:
    """Read a workflow command as GitHub's runner does (ActionCommand.TryParseV2)."""
    found = re.fullmatch(r"::(\w+) ([^:]*)::(.*)", command)
    assert found
    properties = dict(part.split("=", 1) for part in found[2].split(","))
    for old, new in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        properties = {name: value.replace(old, new) for name, value in properties.items()}
    message = found[3].replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
    return found[1], properties, message


@given(HOSTILE)
def test_no_text_of_a_model_becomes_a_command_or_an_escape(finding: Finding) -> None:
    command = formats.github([finding], "net.py")
    assert command.count("\n") == 1
    assert command.endswith("\n")
    assert "\r" not in command
    kind, properties, message = undone(command[:-1])
    expected = {"error": "error", "warning": "warning", "note": "notice"}
    assert kind == expected[finding.severity.value]
    assert properties["file"] == (finding.where.file or "net.py")
    assert finding.message in message
    assert finding.fix in message
    shown = formats.text([finding], "net.py").plain
    assert shown.count("\n") == 2
    assert all(part.isprintable() for part in shown.splitlines())


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


Uri = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[^\s]+$")]
Level = Literal["none", "note", "warning", "error"]


class Message(Strict):
    """3.11, 3.12: plain text."""

    text: Annotated[str, Field(min_length=1)]
    markdown: str = "-"


class Configuration(Strict):
    level: Level


class Rule(Strict):
    """3.49, reportingDescriptor."""

    id: str
    name: Annotated[str, Field(pattern="^[A-Z][A-Za-z]+$")]
    short: Message = Field(alias="shortDescription")
    full: Message = Field(alias="fullDescription")
    help: Message
    uri: Uri = Field(alias="helpUri")
    default: Configuration = Field(alias="defaultConfiguration")


class Driver(Strict):
    """3.19, toolComponent."""

    name: str
    version: Annotated[str, Field(alias="semanticVersion", pattern=r"^\d+\.\d+\.\d+")]
    rules: list[Rule]


class Tool(Strict):
    driver: Driver


class Artifact(Strict):
    """3.4: a URI, or one relative to a base."""

    uri: Annotated[str, Field(pattern=r"^[!#-;=?-\[\]_a-z~%A-Z]*$")]
    base: str | None = Field(None, alias="uriBaseId")


class Region(Strict):
    line: Annotated[int, Field(alias="startLine", ge=1)]


class Physical(Strict):
    artifact: Artifact = Field(alias="artifactLocation")
    region: Region | None = None


class Logical(Strict):
    name: str
    kind: str
    full: str = Field(alias="fullyQualifiedName")


class Location(Strict):
    physical: Physical = Field(alias="physicalLocation")
    logical: list[Logical] = Field(alias="logicalLocations")


class Result(Strict):
    """3.27."""

    rule: str = Field(alias="ruleId")
    index: Annotated[int, Field(alias="ruleIndex", ge=0)]
    level: Level
    message: Message
    locations: list[Location]
    fingerprints: dict[str, str] = Field(alias="partialFingerprints")


class Base(Strict):
    description: Message


class Run(Strict):
    tool: Tool
    columns: Literal["utf16CodeUnits", "unicodeCodePoints"] = Field(alias="columnKind")
    bases: dict[str, Base] = Field(alias="originalUriBaseIds")
    results: list[Result]


class Log(Strict):
    """3.13, after the schema of the standard."""

    schema_: Uri = Field(alias="$schema")
    version: Literal["2.1.0"]
    runs: Annotated[list[Run], Field(min_length=1)]


def read(document: dict[str, Any]) -> Run:
    log = TypeAdapter(Log).validate_json(json.dumps(document))
    return log.runs[0]


@given(HOSTILE)
def test_sarif_has_the_structure_of_the_standard(finding: Finding) -> None:
    run = read(sarif([finding, finding], "net.py"))
    assert [rule.id for rule in run.tool.driver.rules] == [rule.id for rule in RULES]
    first, second = run.results
    for result in (first, second):
        assert run.tool.driver.rules[result.index].id == result.rule == finding.rule
        assert result.level == finding.severity.value
        base = result.locations[0].physical.artifact.base
        assert base is None or base in run.bases
        assert not re.search(r"(?<!\\)(\\\\)*[\[\]]", result.message.text)  # 3.11.6: links
    assert first.fingerprints != second.fingerprints


def test_sarif_locations_and_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(tmp_path / "a folder" / "net.py")

    def result(line: int, node: str = "add") -> Result:
        where = Where("block", file, line)
        finding = Finding("MP101", Severity.ERROR, "shape [3]", "fix", node, "add", where)
        return read(sarif([finding], "net.py")).results[0]

    found = result(7)
    physical = found.locations[0].physical
    assert physical.artifact.uri == "a%20folder/net.py"
    assert physical.artifact.base == "SRCROOT"
    assert physical.region is not None
    assert physical.region.line == 7
    assert found.locations[0].logical[0].full == "block.add"
    assert found.message.text == r"shape \[3\]. Fix: fix."
    assert result(9, "add_4").fingerprints == found.fingerprints
    elsewhere = Finding("MP101", Severity.ERROR, "m", "f", "n", "add", Where("", "/src/net.py", 0))
    location = read(sarif([elsewhere], "net.py")).results[0].locations[0].physical
    assert (urlsplit(location.artifact.uri).scheme, location.region) == ("file", None)


def test_the_document_contains_all_facts() -> None:
    made = formats.document(
        BaselineComparison((FINDING,), known=2, gone=1, compared=True), "net.py"
    )
    assert json.loads(json.dumps(made)) == {
        "schema_version": 1,
        "mpcompile_version": made["mpcompile_version"],
        "source": "net.py",
        "findings": [
            {
                "rule": "MP101",
                "name": "overflowing-constant",
                "severity": "warning",
                "message": FINDING.message,
                "detail": "",
                "fix": "use: less",
                "node": "add",
                "op": "add",
                "module": "block",
                "file": "/src/net,1:x.py",
                "line": 7,
                "page": "docs/lint/MP101.md",
            }
        ],
        "counts": {"error": 0, "warning": 1, "note": 0},
        "known": 2,
        "gone": 1,
    }
    assert formats.summary(
        BaselineComparison((FINDING,), known=2, gone=1, compared=True), "net.py"
    ) == ("net.py: 1 warning; 2 findings of the baseline not shown; 1 finding of the baseline gone")
    assert formats.summary(BaselineComparison(()), "net.py") == "net.py: no findings"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_has_a_page_with_what_why_and_fix(rule: Any) -> None:
    page = rule.text()
    assert page.startswith(f"# {rule.id} {rule.name}\n")
    for part in ("## What", "## Why", "## Fix", "## When to ignore it"):
        assert part in page
    index = (ROOT / "docs/lint/README.md").read_text()
    assert f"[{rule.id}]({rule.id}.md)" in index


def test_each_rule_has_one_page() -> None:
    folder = ROOT / "docs/lint"
    assert {path.stem for path in folder.glob("MP*.md")} == {rule.id for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)
