"""``mpcompile report`` as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from programs.model_files import MODEL, write_model
from programs.onnx_models import HEAD

from mpcompile.cli import exit_code

NET = f"""{HEAD} g (float[4,64] x, float[64,64] v, float[64,64] w) => (float[4,64] y) {{
   h = MatMul (x, v)
   s = Softmax (h)
   y = MatMul (s, w)
}}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(onnx.parser.parse_model(NET), tmp_path / "net.onnx")
    return write_model(tmp_path, monkeypatch)


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], Any]:
    """Write a report; return what is said of it, and its document."""
    capsys.readouterr()
    assert exit_code(["report", *arguments, "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    page = Path(said["output"]).read_text(encoding="utf-8")
    assert said["bytes"] == len(page.encode())
    found = re.search(r'<script type="application/json" id="document">(.*?)</script>', page)
    assert found is not None
    return said, json.loads(found[1])


def formats(document: Any, pane: int) -> set[str]:
    names = document["names"]["precisions"]
    return {names[place] for place in document["panes"][pane]["nodes"]["precision"]}


def test_a_program_is_shown_in_fp32_and_as_transformed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, document = written(capsys, "model.py")
    assert said["output"] == "model.report.html"
    assert [pane["name"] for pane in document["panes"]] == ["before", "after"]
    assert [len(pane["nodes"]["id"]) for pane in document["panes"]] == list(said["nodes"].values())
    assert "f16" not in formats(document, 0)
    assert "f16" in formats(document, 1)
    assert "model = nn.Sequential" not in json.dumps(document["strings"])
    assert "def loss(model, x):" in document["strings"]
    assert not any(str(folder) in text for text in document["strings"])


def test_an_onnx_model_is_shown_as_it_is_and_as_it_would_be_rewritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, document = written(capsys, "net.onnx")
    assert formats(document, 0) == {"f32"}
    assert "f16" in formats(document, 1)
    assert document["quotes"] == []
    assert sorted(path.name for path in folder.glob("net*")) == ["net.onnx", "net.report.html"]
    assert exit_code(["net.onnx", "-o", "mixed.onnx"]) == 0
    said, document = written(capsys, "mixed.onnx")
    assert said["nodes"]["before"] is None
    assert "f16" in formats(document, 0)


def test_an_artifact_folder_holds_both_graphs_and_a_plan_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    _, of_program = written(capsys, "model.py")
    said, of_folder = written(capsys, "model.mp", "-o", "folder.html")
    assert said["nodes"]["before"] > 0
    assert of_folder["panes"][0]["nodes"]["reads"] == of_program["panes"][0]["nodes"]["reads"]
    assert of_folder["twins"] == of_program["twins"]
    said, of_plan = written(capsys, "model.mp/plan.json")
    assert said["nodes"]["before"] is None
    assert [pane["name"] for pane in of_plan["panes"]] == ["after"]


def test_ranges_log_and_check_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["calibrate", "net.onnx"]) == 2  # which has no data
    Path("log.jsonl").write_text('{"step": 0, "loss": 1.5, "scale": 4.0, "skipped": false}\n')
    Path("check.json").write_text(
        json.dumps({"version": 1, "source": "x", "reference": "fp64", "rows": [{"id": "addmm"}]})
    )
    Path("model.py").write_text(MODEL.replace("optimizer)", "optimizer, [(torch.randn(8, 16),)])"))
    assert exit_code(["calibrate", "model.py"]) == 0
    assert exit_code(["model.py"]) == 0
    more = ["--log", "log.jsonl", "--check", "check.json", "--ranges", "model.ranges.json"]
    for source in ("model.py", "model.mp"):
        _, document = written(capsys, source, *more, "--force")
        assert document["log"]["loss"] == [1.5]
        assert document["check"]["rows"][0][1] is None
        assert document["ranges"]["batches"] == 1
        assert document["ranges"]["values"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model.py"], "model.report.html already exists"),
        (["model.py", "-o", "."], ". is a folder"),
        (["model.py", "-o", "x.html", "--log", "model.py"], "this is not a log of a run"),
        (["model.py", "-o", "x.html", "--check", "model.py"], "this is not a check"),
        (["absent.onnx"], "absent.onnx: there is no such file"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    Path("model.report.html").write_text("mine")
    assert exit_code(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert Path("model.report.html").read_text() == "mine"
