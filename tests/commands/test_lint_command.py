"""``mpcompile lint`` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mpcompile
from mpcompile.cli import exit_code
from mpcompile.lint.rules import RULES

HOSTILE = r"\x1b[31m[bold red]::error::evil\n%0A"
MODEL = f"""\
import torch
from torch import nn
from mpcompile import Workload


class Gate(nn.Module):
    def forward(self, x):
        return torch.softmax(x.half(), -1).log().float()  # the logarithm


def loss(model, x):
    return nn.functional.mse_loss(model(x), torch.zeros(()))


def workload():
    model = nn.Sequential()
    model.add_module("enter", nn.Linear(8, 8))
    model.add_module("{HOSTILE}", Gate())
    model.add_module("leave", nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Workload(model, (torch.randn(8, 8),), loss, optimizer)
"""
LINE = next(n for n, line in enumerate(MODEL.splitlines(), 1) if line.endswith("# the logarithm"))
FIXED = MODEL.replace("torch.softmax(x.half(), -1).log().float()", "torch.log_softmax(x, -1)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "fixed.py").write_text(FIXED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    exit_code(["lint", *arguments, "--json", "-"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_text_names_line_module_and_fix_and_exits_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["lint", "model.py"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"model.py:{LINE}: warning[MP202] log reads a softmax")
    assert "fix: use log_softmax" in out
    assert out.endswith("model.py: 1 warning\n")
    assert "\x1b" not in out
    assert exit_code(["lint", "model.py", "--exit-zero"]) == 0


def test_the_fixed_program_exits_with_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["lint", "fixed.py"]) == 0
    assert capsys.readouterr().out == "fixed.py: no findings\n"


def test_json_github_and_sarif_go_to_stdout_and_nothing_else_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["lint", "model.py", "--format", "json"]) == 1
    captured = capsys.readouterr()
    (found,) = json.loads(captured.out)["findings"]
    assert (found["rule"], found["file"], found["line"]) == ("MP202", "model.py", LINE)
    assert captured.err == "model.py: 1 warning\n"
    assert exit_code(["lint", "model.py", "--format", "github"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"::warning file=model.py,line={LINE},title=MP202 logarithm-of")
    assert out.count("\n") == 1
    assert exit_code(["lint", "model.py", "--format", "sarif", "-o", "lint.sarif"]) == 1
    assert capsys.readouterr().out == ""
    run = json.loads((folder / "lint.sarif").read_text())["runs"][0]
    assert run["results"][0]["ruleId"] == "MP202"
    assert document(capsys, "model.py")["counts"] == {"error": 0, "warning": 1, "note": 0}


def test_a_baseline_lets_only_what_is_new_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--baseline", "known.json"]
    assert exit_code(["lint", "model.py", *known]) == 2
    assert exit_code(["lint", "model.py", "--write-baseline"]) == 2
    assert exit_code(["lint", "model.py", *known, "--write-baseline"]) == 0
    capsys.readouterr()
    assert exit_code(["lint", "model.py", *known]) == 0
    assert "no new findings; 1 finding of the baseline not shown" in capsys.readouterr().out
    (folder / "model.py").write_text("\n\n" + MODEL)
    assert exit_code(["lint", "model.py", *known]) == 0
    again = MODEL.replace('"leave", nn.Linear(8, 8)', '"leave", Gate()')
    (folder / "model.py").write_text(again)
    assert exit_code(["lint", "model.py", *known]) == 1
    (folder / "model.py").write_text(FIXED)
    capsys.readouterr()
    assert exit_code(["lint", "model.py", *known]) == 0
    assert "1 finding of the baseline gone" in capsys.readouterr().out


def test_rules_are_chosen_by_flags_and_settings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["lint", "model.py", "--ignore", "MP2"]) == 0
    assert exit_code(["lint", "model.py", "--select", "MP1,MP3"]) == 0
    assert exit_code(["lint", "model.py", "--select", "MP202", "--ignore", "MP2"]) == 1
    assert exit_code(["lint", "model.py", "--select", "MP999"]) == 2
    settings = folder / "pyproject.toml"
    settings.write_text('[tool.mpcompile.lint]\nignore = ["MP202"]\n')
    assert exit_code(["lint", "model.py"]) == 0
    assert exit_code(["lint", "model.py", "--select", "ALL"]) == 1
    settings.write_text('[tool.mpcompile.lint]\nper_module_ignores = { "enter" = ["ALL"] }\n')
    assert exit_code(["lint", "model.py"]) == 1
    settings.write_text('[tool.mpcompile.lint]\nper_module_ignores = { "*" = ["MP202"] }\n')
    assert exit_code(["lint", "model.py"]) == 0
    settings.write_text('[tool.mpcompile.lint]\nselect = ["XY"]\n')
    capsys.readouterr()
    assert exit_code(["lint", "model.py"]) == 2
    assert "[tool.mpcompile.lint]: 'XY' matches no rule" in capsys.readouterr().err
    settings.write_text("[tool.mpcompile.lint]\nselects = []\n")
    assert exit_code(["lint", "model.py"]) == 2


def test_an_override_changes_what_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.py").write_text(MODEL.replace("x.half()", "x"))
    (found,) = document(capsys, "model.py")["findings"]
    assert (found["rule"], found["severity"]) == ("MP202", "note")
    (found,) = document(capsys, "model.py", "--half", "softmax")["findings"]
    assert (found["rule"], found["severity"]) == ("MP202", "warning")
    assert exit_code(["lint", "model.py", "--precision", "fp32"]) == 0


def test_an_onnx_file_needs_no_torch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "model.py", "--to", "net.onnx", "--kind", "forward"]
    assert exit_code([*arguments, "--precision", "fp32"]) == 0
    capsys.readouterr()
    (found,) = document(capsys, "net.onnx")["findings"]
    assert (found["rule"], found["op"]) == ("MP202", "Softmax")
    assert (found["file"], found["line"]) == ("model.py", LINE)
    program = (
        "import sys; from mpcompile.cli import exit_code; "
        "code = exit_code(['lint', 'net.onnx']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    root = str(Path(mpcompile.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 1, done.stderr


def test_the_rules_and_their_pages(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["lint", "--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [rule.id for rule in RULES]
    assert exit_code(["lint", "--explain", "MP103"]) == 0
    assert capsys.readouterr().out.startswith("# MP103 overflowing-mask\n")
    assert exit_code(["lint", "--explain", "MP193"]) == 2
    assert "did you mean 'MP103'?" in capsys.readouterr().err
    assert exit_code(["lint"]) == 2
    assert exit_code(["lint", "missing.py"]) == 2
