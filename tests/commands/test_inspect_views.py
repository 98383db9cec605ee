"""``mpcompile inspect`` on everything it takes, its tables beside a count by hand."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from programs.model_files import write_model

from mpcompile.cli import exit_code
from mpcompile.pipeline import transform
from mpcompile.program.workload import load
from mpcompile.show.of_step import view_of
from mpcompile.show.view import View


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_model(tmp_path, monkeypatch)


@pytest.fixture
def view(folder: Path) -> View:
    return view_of(transform(load("model.py")), "model.py")


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    assert exit_code(["inspect", *arguments, "--json", "-"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_ops_are_counted_by_stage_and_precision(
    view: View, capsys: pytest.CaptureFixture[str]
) -> None:
    document, people = inspect(capsys, "model.py")
    by_hand = Counter((n.stage, n.op, n.precision) for n in view.nodes if n.role == "op")
    counted = {
        (stage, op, precision): count
        for stage, ops in document["ops"].items()
        for op, row in ops.items()
        for precision, count in row.items()
        if count
    }
    assert counted == dict(by_hand)
    assert document["ops"]["forward"]["addmm"]["f16"] == 2
    assert document["ops"]["forward"]["native_layer_norm"]["both"] == 1
    for word in ("forward: 5 ops", "casts:", "saved for backward:", "memory over the step"):
        assert word in people


def test_casts_have_their_edge_their_bytes_and_a_reason(
    view: View, capsys: pytest.CaptureFixture[str]
) -> None:
    document, _ = inspect(capsys, "model.py")
    rows = document["casts"]
    assert {row["id"] for row in rows} == {n.id for n in view.nodes if n.role == "cast"}
    assert [row["bytes"] for row in rows] == sorted((r["bytes"] for r in rows), reverse=True)
    batch = next(row for row in rows if row["tensor"] == "batch_0")
    assert (batch["to"], batch["bytes"]) == ("f16", 6 * 8 * 16)
    assert batch["reason"] == "a batch, read in 16 bits"
    assert all(row["reason"] and row["readers"] for row in rows)


def test_filters_let_through_what_they_say(view: View, capsys: pytest.CaptureFixture[str]) -> None:
    document, people = inspect(capsys, "model.py", "--module", "1", "--in", "both")
    wanted = [n.id for n in view.nodes if n.where.module == "1" and n.precision == "both"]
    assert [node["id"] for node in document["nodes"]] == wanted
    assert "native_layer_norm_backward" in people
    assert "update: " not in people
    document, _ = inspect(capsys, "model.py", "--op", "add*", "--stage", "update")
    assert {node["stage"] for node in document["nodes"]} == {"update"}
    assert exit_code(["inspect", "model.py", "--op", "nothing"]) == 0
    assert "no node matches the filters" in capsys.readouterr().out


def test_tables_are_cut_short_unless_all_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, short = inspect(capsys, "model.py")
    _, long = inspect(capsys, "model.py", "--all")
    assert "more (--all)" in short
    assert "--all" not in long
    assert len(long.splitlines()) > len(short.splitlines())


def test_a_spreadsheet_gets_a_row_a_node(view: View, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["inspect", "model.py", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["id"] for row in rows] == [node.id for node in view.nodes]
    assert {row["module"] for row in rows} >= {"0", "1", "2"}


def test_plans_folders_and_models_are_shown_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    assert exit_code(["export", "model.py", "--to", "forward.onnx"]) == 0
    capsys.readouterr()
    plan, _ = inspect(capsys, "model.mp/plan.json")
    whole, _ = inspect(capsys, "model.mp")
    model, _ = inspect(capsys, "forward.onnx")
    program, _ = inspect(capsys, "model.py")
    assert plan["kind"] == "plan"
    assert list(plan["ops"]) == ["forward"]
    assert whole["nodes"] == program["nodes"]
    assert model["kind"] == "onnx"
    assert sum(row["f16"] for row in model["ops"]["forward"].values()) > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.onnx"], "missing.onnx"),
        (["missing.json"], "there is no such file"),
        (["empty"], "holds neither view.json nor plan.json"),
        (["given.json", "--plan", "given.json"], "is not planned again"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "given.json").touch()
    assert exit_code(["inspect", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_cell_that_looks_like_a_formula_is_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    file = folder / "model.mp" / "view.json"
    document = json.loads(file.read_text())
    document["nodes"][0]["where"]["module"] = "=cmd()"
    file.write_text(json.dumps(document))
    capsys.readouterr()
    assert exit_code(["inspect", "model.mp", "--format", "csv"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert row["module"] == "'=cmd()"
