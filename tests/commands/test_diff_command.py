"""``mpcompile diff`` between whatever has a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs.model_files import MODEL, write_model

from mpcompile.cli import exit_code
from mpcompile.pipeline import transform
from mpcompile.plan.diff import plan_diff
from mpcompile.plan.policy import Level, Policy
from mpcompile.program.workload import load
from mpcompile.step.transformed import Choices


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wide.py").write_text(MODEL.replace("64", "128"))
    return write_model(tmp_path, monkeypatch)


def test_two_policies_of_a_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["model.py@tensor-cores-only", "model.py@paper"]
    assert exit_code(["diff", *sides, "--json", "-"]) == 1
    captured = capsys.readouterr()
    plans = [
        transform(load("model.py"), Choices(policy=Policy(level))).plan
        for level in (Level.TENSOR_CORES_ONLY, Level.PAPER)
    ]
    wanted = plan_diff(plans[0], plans[1])
    document = json.loads(captured.out)
    assert [change["op"] for change in document["decisions"]] == [c.op for c in wanted.decisions]
    assert document["cost"] == list(wanted.cost)
    assert "layer_norm (1): f32 -> f16" in captured.err


def test_settings_of_a_file_are_a_policy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.toml").write_text('[tool.mpcompile]\nfull = ["2"]\n')
    assert exit_code(["diff", "model.py@old.toml", "model.py"]) == 1
    assert "linear_1 (2): f32 -> f16" in capsys.readouterr().out
    assert exit_code(["diff", "model.py@paper", "model.py"]) == 0


def test_two_programs_and_their_artifacts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["model.py"]) == 0
    assert exit_code(["diff", "model.mp", "model.py"]) == 0
    assert exit_code(["diff", "model.mp", "wide.py"]) == 1
    assert "another size" in capsys.readouterr().out


def test_two_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["export", "model.py", "--to", "forward.onnx", "--precision", "fp32"]) == 0
    assert exit_code(["diff", "forward.onnx@careful", "forward.onnx@careful"]) == 0
    capsys.readouterr()
    assert exit_code(["diff", "forward.onnx@careful", "forward.onnx@paper"]) == 1
    assert "f32 -> f16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        ("model.py@papper", "did you mean 'paper'?"),
        ("model.py@none.toml", "none.toml: there is no such file"),
        ("model.mp@paper", "already holds a plan"),
        ("nowhere", "nowhere"),
    ],
)
def test_what_has_no_plan_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], side: str, sentence: str
) -> None:
    assert exit_code(["model.py"]) == 0
    assert exit_code(["diff", side, "model.mp"]) == 2
    assert sentence in capsys.readouterr().err
