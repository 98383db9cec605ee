"""The command line shows all pieces of a program: decisions, reasons, and lines of the breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs.model_files import write_model

from mpcompile.cli import exit_code

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x):
        x = self.one(x).relu()
        if x.sum().item() > 0:
            x = self.two(x).relu()
        return self.three(x)


def loss(model, x):
    return model(x).square().mean()


def workload():
    model, batch = Net(), (torch.randn(8, 16),)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Workload(model, batch, loss, optimizer, data=[batch] * 2)
"""
BREAK = "model.py:13: "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_model(tmp_path, monkeypatch, MODEL)


def document(arguments: list[str]) -> Any:
    assert exit_code([*arguments, "--json", "out.json"]) == 0
    return json.loads(Path("out.json").read_text())


def test_transform_writes_the_decisions_of_all_pieces(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(["model.py"])
    said = "".join(capsys.readouterr().out.split())
    assert found["ops"]["forward"]["f16"] == 5
    assert found["casts"] == len(json.loads((folder / "model.mp/plan.json").read_text())["casts"])
    decisions = (folder / "model.mp/decisions.txt").read_text()
    for name, line in (("piece0.linear", 12), ("piece1.linear", 14), ("piece1.linear_1", 15)):
        [row] = [row for row in decisions.splitlines() if row.split()[0] == name]
        assert f"model.py:{line}" in row
        assert "a Tensor Core" in row
    pieces = (folder / "model.mp/pieces.txt").read_text()
    assert pieces.startswith("piece0: ")
    assert BREAK in pieces.splitlines()[0]
    assert "".join(pieces.split()) in said


def test_inspect_shows_all_pieces_and_the_update(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(["inspect", "model.py"])
    assert BREAK in capsys.readouterr().err
    stages = {node["id"]: node["stage"] for node in found["nodes"]}
    assert stages["piece0.linear"] == stages["piece1.linear_1"] == "forward"
    assert "update" in stages.values()
    assert found["peak"] is None
    assert {row["to"] for row in found["casts"]} >= {"f16"}


def test_an_override_names_a_node_of_a_piece(folder: Path) -> None:
    found = document(["inspect", "model.py", "--full", "node:piece1.linear"])
    precision = {node["id"]: node["precision"] for node in found["nodes"]}
    assert precision["piece0.linear"] == "f16"
    assert precision["piece1.linear"] == "f32"


def test_explain_finds_nodes_and_modules_of_all_pieces(folder: Path) -> None:
    found = document(["explain", "model.py", "piece1.linear", "two"])["explained"]
    said = " ".join(found["piece1.linear"])
    assert "in two" in said
    assert "a Tensor Core accumulates it in FP32" in said
    assert "`--full node:piece1.linear` requests it." in said
    assert found["two"][0] == "two is a module with 1 op: 1 in f16."


def test_explain_of_an_unknown_name_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["explain", "model.py", "piece7.linear"]) != 0
    assert "there is no node, cast or module 'piece7.linear'" in capsys.readouterr().err


def test_diff_compares_the_plans_of_all_pieces(folder: Path) -> None:
    assert exit_code(["model.py"]) == 0
    assert exit_code(["diff", "model.mp", "model.py"]) == 0
    assert exit_code(["diff", "model.mp", "model.py@fp32"]) == 1


def test_report_and_run_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["report", "model.py"]) == 0
    assert "piece1.linear_1" in (folder / "model.report.html").read_text()
    assert exit_code(["run", "model.py", "--steps", "2"]) == 0
    assert "2 steps" in capsys.readouterr().out


def test_lint_looks_at_all_pieces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MODEL.replace("self.one(x).relu()", "(self.one(x).relu() + 1e-9)")
    text = text.replace("self.two(x).relu()", "(self.two(x).relu() * 1e5)")
    text = text.replace("model(x).square()", "model(x).sigmoid().log()")
    (folder / "model.py").write_text(text)

    def found(*options: str) -> set[tuple[str, str, str, int]]:
        arguments = ["lint", "model.py", *options, "--exit-zero", "--json", "out.json"]
        assert exit_code(arguments) == 0
        rows = json.loads((folder / "out.json").read_text())["findings"]
        return {
            (row["rule"], row["severity"], row["node"].partition(".")[0], row["line"])
            for row in rows
        }

    plain = found()
    assert plain == {
        ("MP102", "note", "piece0", 12),
        ("MP101", "warning", "piece1", 14),
        ("MP202", "note", "piece2", 19),
    }
    forced = found("--half", "node:piece0.add", "--half", "node:piece1.mul")
    assert {row for row in forced if row[1] == "error"} == {
        ("MP102", "error", "piece0", 12),
        ("MP101", "error", "piece1", 14),
    }
    assert "matches no op" not in capsys.readouterr().err
