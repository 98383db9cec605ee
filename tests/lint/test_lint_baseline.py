"""A baseline matches rule, module, op and message; selections work as in ruff."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import builds, integers, lists, sampled_from

from mpcompile.errors import BadInput
from mpcompile.lint.baseline import Baseline, baseline_of, compare_with_baseline, read_baseline
from mpcompile.lint.finding import Finding, Severity
from mpcompile.lint.selection import RuleSelection
from mpcompile.plan.dataflow import Where

FEW = sampled_from(["a", "b"])
FINDINGS = lists(
    builds(
        Finding,
        FEW,
        sampled_from(Severity),
        FEW,
        FEW,
        FEW,
        FEW,
        builds(Where, FEW, FEW, integers(0, 3)),
    ),
    max_size=12,
)


@given(FINDINGS, FINDINGS)
def test_new_findings_are_the_difference_of_multisets(
    old: list[Finding], now: list[Finding]
) -> None:
    found = compare_with_baseline(now, baseline_of(old))
    before = Counter(finding.identity for finding in old)
    after = Counter(finding.identity for finding in now)
    assert Counter(finding.identity for finding in found.new) == after - before
    assert found.gone == (before - after).total()
    assert found.known + len(found.new) == len(now)
    assert list(found.new) == [item for item in now if any(item is new for new in found.new)]


@given(FINDINGS)
def test_moved_lines_and_renumbered_nodes_are_not_new(findings: list[Finding]) -> None:
    moved = [
        replace(item, node=f"{item.node}_1", where=replace(item.where, line=item.where.line + 10))
        for item in findings
    ]
    assert compare_with_baseline(moved, baseline_of(findings)).new == ()


@given(FINDINGS)
def test_a_baseline_is_read_back_from_its_file(findings: list[Finding]) -> None:
    known = baseline_of(findings)
    assert baseline_of(list(reversed(findings))) == known


def test_reading(tmp_path: Path) -> None:
    finding = Finding("MP101", Severity.ERROR, "m", "f", "n", "add", Where("block", "x.py", 3))
    path = tmp_path / "known.json"
    path.write_text(baseline_of([finding, finding]).to_json())
    assert read_baseline(path) == baseline_of([finding, finding])
    assert '"count": 2' in path.read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "this is not JSON"),
        ('{"version": 2, "findings": []}', "version should be 1"),
        ('{"version": 1, "findings": [{"rule": "MP101"}]}', "findings[0].module is missing"),
        ('{"version": 1, "findings": [], "more": 1}', "there is no field more"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_not_a_baseline_is_refused(
    tmp_path: Path, content: str | None, says: str
) -> None:
    path = tmp_path / "known.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput) as refusal:
        read_baseline(path)
    assert says in str(refusal.value)


def test_an_empty_baseline_knows_nothing() -> None:
    finding = Finding("MP101", Severity.ERROR, "m", "f", "n", "add", Where())
    found = compare_with_baseline([finding], Baseline(1, ()))
    assert found.new == (finding,)
    assert found.fails
    assert not compare_with_baseline(
        [replace(finding, severity=Severity.NOTE)], Baseline(1, ())
    ).fails


@pytest.mark.parametrize(
    ("select", "ignore", "selected"),
    [
        (("ALL",), (), True),
        (("ALL",), ("MP1",), False),
        (("MP101",), ("MP1",), True),
        (("MP1",), ("MP101",), False),
        (("MP1",), ("MP1",), False),
        (("MP1",), ("ALL",), True),
        (("MP2",), (), False),
        ((), (), False),
    ],
)
def test_the_longer_selector_wins(
    select: tuple[str, ...], ignore: tuple[str, ...], selected: bool
) -> None:
    assert RuleSelection(select, ignore).selects("MP101") is selected


def test_modules_ignore_rules_for_themselves_and_the_modules_below() -> None:
    chosen = RuleSelection(modules={"encoder.*": ("MP4",), "head": ("ALL",)})
    for module, rule, kept in (
        ("encoder.0", "MP401", False),
        ("encoder.0.linear", "MP401", False),
        ("encoder.0", "MP101", True),
        ("encoder", "MP401", True),
        ("head.1", "MP101", False),
        ("", "MP401", True),
    ):
        finding = Finding(rule, Severity.NOTE, "m", "f", "n", "add", Where(module))
        assert chosen.keeps(finding) is kept, (module, rule)


def test_a_selector_without_a_rule_is_refused() -> None:
    RuleSelection(("MP1", "ALL"), ("MP101",)).check(["MP101"], "here")
    with pytest.raises(BadInput) as refusal:
        RuleSelection(modules={"head": ("MP104",)}).check(["MP101"], "here")
    assert str(refusal.value) == (
        "here: 'MP104' matches no rule of lint (did you mean 'MP101'?); "
        "`mpcompile lint --rules` lists them."
    )
