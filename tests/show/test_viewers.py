"""Files for other viewers: Model Explorer's files, and artifacts for tlparse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs.model_files import write_model

from mpcompile.cli import exit_code
from mpcompile.numerics.calibration import calibrate
from mpcompile.pipeline import transform
from mpcompile.program.workload import load
from mpcompile.show.model_explorer import model_explorer_files
from mpcompile.show.of_step import view_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_model(tmp_path, monkeypatch)


def test_model_explorer_gets_every_node_with_its_edges(folder: Path) -> None:
    view = view_of(transform(load("model.py")), "model.py")
    document: dict[str, Any] = json.loads(model_explorer_files(view)["graph.json"])
    (graph,) = document["graphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert set(nodes) == set(view.by_id)
    for node in view.nodes:
        edges = [edge["sourceNodeId"] for edge in nodes[node.id]["incomingEdges"]]
        assert edges == list(node.reads)
    norm = nodes["native_layer_norm"]
    assert norm["namespace"] == "forward/1"
    assert {"key": "precision", "value": "both"} in norm["attrs"]


def test_overlays_contain_precision_casts_ranges_and_errors(folder: Path) -> None:
    workload = load("model.py")
    view = view_of(transform(workload), "model.py")
    ranges = calibrate(workload)
    files = model_explorer_files(view, ranges, {"addmm": 1e-3, "unknown": 1.0})
    overlays = {
        name.removesuffix(".json"): json.loads(text)["graph"]["results"]
        for name, text in files.items()
        if name != "graph.json"
    }
    assert overlays["precision"]["addmm"]["value"] == "f16"
    casts = {node.id for node in view.nodes if node.role == "cast"}
    assert set(overlays["casts"]) == casts
    assert overlays["error"] == {"addmm": {"value": 1e-3}}
    largest = ranges.values["linear"].largest_finite
    assert overlays["abs_max"]["addmm"]["value"] == largest
    bits = overlays["headroom_bits"]["addmm"]["value"]
    assert largest * 2**bits == pytest.approx(65504, rel=0.01)


def test_inspect_writes_the_files_and_replaces_nothing_without_force(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", "model.py", "--model-explorer", "seen"]
    assert exit_code(arguments) == 0
    assert {path.name for path in (folder / "seen").iterdir()} == {
        "graph.json",
        "precision.json",
        "casts.json",
    }
    assert exit_code(arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert exit_code([*arguments, "--force"]) == 0


def test_measurements_of_check_become_an_overlay_of_errors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["check", "model.py", "--json", "check.json"]) == 0
    arguments = ["inspect", "model.py", "--check", "check.json"]
    assert exit_code(arguments) == 2
    assert "give --model-explorer" in capsys.readouterr().err
    assert exit_code([*arguments, "--model-explorer", "seen"]) == 0
    checked = {row["id"]: row for row in json.loads(Path("check.json").read_text())["rows"]}
    shown = json.loads((folder / "seen" / "error.json").read_text())["graph"]["results"]
    assert shown.keys() <= checked.keys()
    assert len(shown) > len(checked) / 2
    for name, result in shown.items():
        assert result["value"] == checked[name]["error"]


def test_the_log_for_tlparse_contains_graphs_and_decisions(folder: Path) -> None:
    environment = {**os.environ, "TORCH_TRACE": str(folder / "trace")}
    command = [sys.executable, "-m", "mpcompile", "model.py"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (log,) = (folder / "trace").iterdir()
    text = log.read_text()
    for name in ("mpcompile_before", "mpcompile_after", "mpcompile_decisions.json"):
        assert f'"name": "{name}"' in text
    assert '"name": "mpcompile_step"' in text
    assert "native_layer_norm" in text
