"""``mpcompile check``: exit codes, the first node over the tolerance, its document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted.marked import line_of
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
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = exit_code(["check", "model.py", *arguments, "--json", "-"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out or "null"), captured.err


def test_a_sound_program_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, people = check(capsys, "--batches", "2", "--steps", "1")
    assert code == 0
    assert (document["first"], document["failed"]) == (None, [])
    assert (document["batches"], document["steps"]) == (2, 1)
    assert {row["stage"] for row in document["rows"]} == {"forward", "backward"}
    assert "none over the tolerance of 0.25" in people
    assert "eager autocast also computes" in " ".join(people.split())
    assert max(map(len, people.splitlines()[:-1])) <= 80


@pytest.mark.parametrize(
    ("middle", "fault", "flags", "said"),
    [
        ("Logits", "logits", (), "of its numbers are not finite; `--full node:matmul`"),
        ("Epsilon", "division", ("--half", "add", "--half", "div"), "are not finite"),
        (
            "Underflow",
            "underflow",
            (),
            "its error is 1, over 0.25, 100% of its numbers rounded to zero",
        ),
    ],
)
def test_a_planted_fault_is_exit_code_1_with_its_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    middle: str,
    fault: str,
    flags: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setenv("MIDDLE", middle)
    code, document, people = check(capsys, *flags)
    assert code == 1
    last = people.splitlines()[-1]
    assert f"marked.py:{line_of(fault)}: " in last
    assert "is the first tensor over the tolerance" in last
    assert said in last
    assert document["first"] == document["failed"][0]
    by_id = {row["id"]: row for row in document["rows"]}
    assert by_id[document["first"]]["where"]["line"] == line_of(fault)


def test_what_it_advises_makes_it_pass(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDDLE", "Logits")
    flags: list[str] = []
    for _ in range(3):
        code, _, people = check(capsys, *flags)
        if code == 0:
            break
        advice = people.splitlines()[-1].split("`")[1]
        flags += advice.split()
    assert code == 0
    assert flags == ["--full", "node:matmul"]  # the planner then keeps the division in FP32 too


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tolerance", "0"], "--tolerance is 0.0; give a number above 0"),
        (["--tolerance", "nan"], "--tolerance is nan"),
        (["--batches", "0"], "--batches is 0"),
        (["--steps", "-1"], "--steps is -1"),
    ],
)
def test_odd_arguments_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, people = check(capsys, *arguments)
    assert code == 2
    assert said in people
    assert len(people.splitlines()) == 1


def test_a_program_without_a_loss_is_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.py").write_text(
        "import torch\nmodel = torch.nn.Linear(4, 4)\nbatch = (torch.randn(2, 4),)\n"
    )
    code, _, people = check(capsys)
    assert code == 2
    assert "the workload has no loss and no optimizer" in people
