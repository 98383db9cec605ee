"""``mpcompile model.py`` and ``mpcompile run``: the first batch is compared before all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted.marked import line_of
from programs.model_files import write_model
from root import ROOT

from mpcompile.cli import exit_code

MODEL = f"""\
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from planted import marked

def workload():
    return marked.program(getattr(marked, os.environ.get("MIDDLE", ""), marked.nn.Identity))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_model(tmp_path, monkeypatch, MODEL)


@pytest.mark.parametrize("command", [(), ("run",)])
def test_a_first_batch_that_is_far_off_fails_with_one_sentence(
    folder: Path,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MIDDLE", "Logits")
    more = ("--steps", "2") if command else ()
    before = sorted(folder.iterdir())
    assert exit_code([*command, "model.py", *more]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"marked.py:{line_of('logits')}: on the first batch the loss has numbers" in said
    assert "bmm (bmm, forward) in middle is the first node that is far off" in said
    assert "beyond 65504" in said
    assert said.endswith("`--full node:matmul` mends it, or give --no-check to go on.")
    assert sorted(folder.iterdir()) == before
    assert exit_code([*command, "model.py", *more, "--full", "node:matmul"]) == 0


@pytest.mark.parametrize("flag", ["--no-check", "--no-verify"])
def test_the_comparison_can_be_left_out(
    folder: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDDLE", "Logits")
    assert exit_code(["model.py", flag]) == 0
    assert (folder / "model.mp" / "decisions.txt").exists()
    assert exit_code(["run", "model.py", "--steps", "2", flag]) == 0


def test_a_sound_program_says_how_near_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["model.py"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "first batch beside FP32: the loss differs by" in out
    assert exit_code(["model.py", "--force", "--precision", "fp32"]) == 0
    assert "first batch beside FP32" not in capsys.readouterr().out


def test_a_given_plan_is_what_must_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIDDLE", "Logits")
    assert exit_code(["model.py", "--no-check"]) == 0
    assert exit_code(["run", "model.py", "--steps", "2", "--plan", "model.mp/plan.json"]) == 1
    assert "change the given plan" in capsys.readouterr().err
    assert exit_code(["check", "model.py", "--plan", "model.mp/plan.json"]) == 1
    assert "change the given plan" in capsys.readouterr().err


def test_check_names_no_override_that_does_not_help(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIDDLE", "Underflow")
    monkeypatch.setattr("mpcompile.commands.check.tried", lambda *_: None)
    assert exit_code(["check", "model.py", "--json", "check.json"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no few ops in FP32 were found that mend it; `mpcompile tune model.py`" in said
    assert "--full" not in said
    assert json.loads((folder / "check.json").read_text())["failed"]


def test_run_names_no_override_that_does_not_help(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIDDLE", "Epsilon")
    words = ["run", "model.py", "--steps", "2", "--no-check", "--half", "add", "--half", "div"]
    assert exit_code(words) == 0
    out = capsys.readouterr().out
    assert "`--full node:add --full node:div` keeps it in FP32. With it, this step is" in out
    monkeypatch.setattr("mpcompile.numerics.watch.tried", lambda *_: None)
    assert exit_code(words) == 0
    out = capsys.readouterr().out
    assert "No few ops in FP32 were found that make it finite; `mpcompile tune` finds a set." in out
    assert "--full" not in out
