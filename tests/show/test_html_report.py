"""The content of a report, and that no text leaves its element; no browser is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted.hostile_texts import hostile_texts
from programs import report_subjects, tall

from mpcompile.errors import BadInput, printable
from mpcompile.numerics.calibration import calibrate
from mpcompile.numerics.run_log import RunRow, SkipCause, read_run_log
from mpcompile.pipeline import transform
from mpcompile.plan.dataflow import Where
from mpcompile.plan.policy import FULL_PRECISION
from mpcompile.show.html_report.check_file import read_check
from mpcompile.show.html_report.counterparts import counterparts
from mpcompile.show.html_report.document import ReportInput, document
from mpcompile.show.html_report.page import SCRIPTS, STYLES, render
from mpcompile.show.of_step import view_of
from mpcompile.show.tables import casts_of, largest_of, ops_by_precision, saved_of
from mpcompile.show.view import PRECISIONS, View, ViewNode
from mpcompile.step.transformed import Choices

PACKAGE = files("mpcompile.show.html_report")
VENDORED = json.loads(PACKAGE.joinpath("vendor/vendored.json").read_text())


class Parts(HTMLParser):
    """The elements that a browser would find, with their attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self.open = True

    def handle_endtag(self, _: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for found, attributes, text in self.found if found == tag]

    def document(self) -> dict[str, Any]:
        (text,) = [text for attributes, text in self.all("script") if attributes.get("id")]
        read: dict[str, Any] = json.loads(text)
        return read


def rows_of(read: dict[str, Any], pane: int) -> list[dict[str, Any]]:
    """Return the nodes of a document as a page reads them."""
    strings, columns = read["strings"], read["panes"][pane]["nodes"]
    names = read["names"]
    texts = (
        "id",
        "op",
        "type",
        "planned",
        "rule",
        "reason",
        "computes",
        "stores",
        "module",
        "file",
    )
    return [
        {name: strings[columns[name][index]] for name in texts}
        | {name: columns[name][index] for name in ("line", "bytes", "alive", "reads")}
        | {"saved": bool(columns["saved"][index])}
        | {one: names[f"{one}s"][columns[one][index]] for one in ("role", "stage", "precision")}
        for index in range(len(columns["id"]))
    ]


def as_rows(view: View) -> list[dict[str, Any]]:
    """Return the nodes of a view in the same form: the oracle."""
    indices = {node.id: index for index, node in enumerate(view.nodes)}
    here = f"{Path.cwd()}/"
    return [
        {
            name: printable(getattr(node, name))
            for name in ("id", "op", "type", "planned", "rule", "reason", "computes")
        }
        | {"stores": printable("+".join(node.stores))}
        | {"module": printable(node.where.module), "line": node.where.line}
        | {"file": printable(node.where.file.removeprefix(here))}
        | {name: getattr(node, name) for name in ("bytes", "alive", "role", "stage", "precision")}
        | {"reads": [indices[name] for name in node.reads], "saved": node.saved}
        for node in view.nodes
    ]


@pytest.fixture(scope="module")
def views() -> tuple[View, View]:
    workload = tall.workload()
    before = transform(workload, Choices(policy=FULL_PRECISION))
    return view_of(before, "tall.py"), view_of(transform(workload), "tall.py")


def test_every_node_of_both_graphs_is_in_the_document(views: tuple[View, View]) -> None:
    before, after = views
    read = Parts(render(document(ReportInput(after, before)), "tall.py")).document()
    assert rows_of(read, 0) == as_rows(before)
    assert rows_of(read, 1) == as_rows(after)


def test_the_tables_equal_those_of_inspect(views: tuple[View, View]) -> None:
    _, after = views
    read = document(ReportInput(after))
    strings, tables = read["strings"], read["tables"]
    ids = [node.id for node in after.nodes]
    assert {
        stage: {strings[op]: dict(zip(PRECISIONS, row, strict=True)) for op, *row in rows}
        for stage, rows in tables["ops"]
    } == ops_by_precision(after.nodes)
    casts = [(row.id, row.bytes) for row in casts_of(after, after.nodes)]
    assert [(ids[index], size) for index, size in tables["casts"]] == casts
    assert [ids[index] for index in tables["saved"]] == [n.id for n in saved_of(after.nodes)]
    largest = [(node.id, moved) for node, moved in largest_of(after, after.nodes)[:200]]
    assert [(ids[index], moved) for index, moved in tables["costs"]] == largest
    assert len(read["panes"]) == 1
    assert read["twins"] is None


def test_a_node_has_its_counterpart(views: tuple[View, View]) -> None:
    before, after = views
    found = counterparts(before, after)
    pairs = {
        node.id: before.nodes[index].id if index >= 0 else None
        for node, index in zip(after.nodes, found, strict=True)
    }
    assert len(found) == len(after.nodes)
    for node in after.nodes:
        twin = pairs[node.id]
        if twin is None:
            continue
        other = before.by_id[twin]
        if node.role == "op" and node.planned:
            assert (other.planned, other.stage) == (node.planned, node.stage)
        if node.role == "cast" and node.stage == "forward":
            assert twin == pairs[node.reads[0]]
    planned = [node for node in after.nodes if node.role == "op" and node.planned]
    assert planned
    assert sum(pairs[node.id] is not None for node in planned) > 0.9 * len(planned)
    weights = [node.id for node in after.nodes if node.op == "working"]
    assert weights
    assert all(pairs[name] == name.removesuffix("_working") for name in weights)


def test_casts_in_a_cycle_have_no_counterpart() -> None:
    a = ViewNode("a", "cast", "cast", "forward", "both", reads=("b",))
    b = ViewNode("b", "cast", "cast", "forward", "both", reads=("a",))
    assert counterparts(View("", "plan", "fp16", ()), View("", "plan", "fp16", (a, b))) == [-1, -1]


def test_ranges_are_stored_by_exponent() -> None:
    ranges = calibrate(tall.workload())
    read = document(ReportInput(View("x", "plan", "fp16", ()), ranges=ranges))
    for kind, held in (("values", ranges.values), ("gradients", ranges.gradients)):
        rows = {read["strings"][row[0]]: row[1:] for row in read["ranges"][kind]}
        assert rows.keys() == held.keys()
        for name, (largest, count, zeros, nonfinite, exponents, counts) in rows.items():
            assert (largest, count) == (held[name].largest_finite, held[name].count)
            assert (zeros, nonfinite) == (held[name].zeros, held[name].nonfinite)
            assert tuple(zip(exponents, counts, strict=True)) == held[name].exponents


def test_a_long_log_keeps_every_skipped_step() -> None:
    log = tuple(RunRow(step, 1.0, 2.0, step % 997 == 3) for step in range(30_000))
    kept = document(ReportInput(View("x", "plan", "fp16", ()), log=log))["log"]
    assert len(kept["step"]) < 9000
    assert (kept["steps"], kept["skips"]) == (30_000, 31)
    skipped = [row.step for row in log if row.skipped]
    assert [kept["step"][index] for index, _ in kept["skipped"]] == skipped


def test_source_lines_are_quoted_only_for_a_program(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the password\n")
    node = ViewNode("x", "add", "op", "forward", "f32", where=Where("", str(secret), 1))
    subject = ReportInput(View("x.onnx", "onnx", "fp16", (node,)))
    assert "the password" not in json.dumps(document(subject))
    assert "the password" in json.dumps(document(replace(subject, quotes=True)))


@pytest.fixture(scope="module")
def hostile_page() -> str:
    subject = report_subjects.hostile(hostile_texts(500))
    return render(document(subject), subject.after.source)


def test_hostile_texts_add_no_element(hostile_page: str) -> None:
    harmless = render(document(report_subjects.hostile(["a", "b"])), "harmless")
    tags = [(tag, sorted(attributes)) for tag, attributes, _ in Parts(hostile_page).found]
    assert tags == [(tag, sorted(attributes)) for tag, attributes, _ in Parts(harmless).found]
    expected = as_rows(report_subjects.hostile(hostile_texts(500)).after)
    assert rows_of(Parts(hostile_page).document(), 1) == expected


@given(st.text(), st.text(st.sampled_from("<>&\"'/!-scriptSCRIPT{}%# \\\u2028\x00")))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_read_back_as_it_is_displayed(first: str, second: str) -> None:
    nodes = (ViewNode("a", first, "op", "forward", "f16", reason=second),)
    page = render(document(ReportInput(View(second, "plan", "fp16", nodes))), printable(second))
    parts = Parts(page)
    (row,) = rows_of(parts.document(), 0)
    assert (row["op"], row["reason"]) == (printable(first), printable(second))
    inside = page.split('id="document">')[1].split("</script>")[0]
    assert not set(inside) & set("<>&\u2028\u2029")
    assert len(parts.all("script")) == len(SCRIPTS) + 1


def test_the_policy_allows_only_our_own_scripts_and_styles(hostile_page: str) -> None:
    parts = Parts(hostile_page)
    (policy,) = [
        attributes["content"] or ""
        for attributes, _ in parts.all("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    for kind, names in (("script", SCRIPTS), ("style", STYLES)):
        texts = [text for attributes, text in parts.all(kind) if "type" not in attributes]
        assert texts == [PACKAGE.joinpath(name).read_text() for name in names]
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        assert rules[f"{kind}-src"].split() == hashes


@pytest.mark.parametrize("name", [*SCRIPTS, *STYLES])
def test_our_scripts_and_styles_stay_in_their_element_and_request_nothing(name: str) -> None:
    text = PACKAGE.joinpath(name).read_bytes().decode()
    assert "\r" not in text
    assert not re.search(r"</?script|</?style|<!--", text, re.IGNORECASE)
    if name.startswith("page/"):
        forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\("
        assert not re.search(rf"{forbidden}|XMLHttpRequest|href|http|\.src\b|import\(", text)


def test_vendored_files_equal_their_table() -> None:
    folder = PACKAGE.joinpath("vendor")
    there = {item.name for item in folder.iterdir()} - {"vendored.json"}
    assert there == {row["file"] for row in VENDORED} | {row["text"] for row in VENDORED}
    for row in VENDORED:
        digest = hashlib.sha256(folder.joinpath(row["file"]).read_bytes()).hexdigest()
        assert digest == row["sha256"], row["file"]
        assert row["licence"] == "MIT"
        assert "Permission is hereby granted" in folder.joinpath(row["text"]).read_text()


def test_a_log_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    cause = {"node": "mm", "why": "it overflowed", "gradients": ["w"], "expected": True, "new": 1}
    rows = [
        {"step": 0, "loss": 2.5, "scale": 65536.0, "skipped": False, "more": 1},
        {"step": 1, "loss": None, "scale": 65536, "skipped": True, "cause": cause},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 2, "lo')
    assert read_run_log(file) == (
        RunRow(0, 2.5, 65536.0),
        RunRow(
            1, None, 65536.0, True,
            SkipCause("mm", why="it overflowed", gradients=("w",), expected=True),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"loss": 1.0}', "step is missing"),
        ('{"step": -1}', "step should be greater than or equal to 0"),
        ('{"step": 1, "loss": NaN}', "loss should be a finite number"),
        ('{"step": 1, "cause": {"node": 3}}', "cause.node should be a valid string"),
        ("[]", "object"),
        ("{", "this is not JSON"),
    ],
)
def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path, line: str, sentence: str) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(f'{{"step": 0}}\n{line}\n')
    with pytest.raises(BadInput, match=re.escape(sentence)) as caught:
        read_run_log(file)
    assert str(caught.value).startswith(f"{file}:2: this is not a log of a run")


def test_a_check_is_read_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    row = {"id": "mm", "error": 0.5, "autocast": None, "headroom_bits": -1.5, "zeros": 0.25}
    document = {"version": 1, "source": "x", "reference": "fp64", "rows": [row], "more": []}
    file.write_text(json.dumps(document))
    check = read_check(file)
    assert check.reference == "fp64"
    assert (check.nodes["mm"].error, check.nodes["mm"].headroom_bits) == (0.5, -1.5)
    file.write_text(json.dumps(document | {"version": 2}))
    with pytest.raises(BadInput, match="this is not a check: version should be 1"):
        read_check(file)
