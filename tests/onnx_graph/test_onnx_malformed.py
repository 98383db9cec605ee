"""Malformed ONNX files by the thousand.

`bench/robustness/malformed.py` tries one of them again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.isolated import Failure, Isolated
from bench.robustness.malformed import trials
from bench.robustness.malformed_models import KINDS, kind_of, make
from bench.robustness.malformed_trial import Case, Outcome, attempt

COUNT, SEED = 2_000, 0


@pytest.mark.skipif(sys.platform != "linux", reason="its processes are bounded as Linux does")
def test_malformed_files_do_no_harm() -> None:
    """No crash, no hang, no file touched outside; exit 2 and a sentence for what is refused."""
    tried = list(trials(COUNT, SEED))
    assert [trial for trial in tried if trial.column == "WRONG"] == []
    columns = {kind: {t.column for t in tried if t.kind == kind} for kind in KINDS}
    assert all("refused" in found for kind, found in columns.items() if kind != "costly to run")
    # One that ONNX Runtime cannot run is not compared: exit code 1, as for a difference.
    assert columns["costly to run"] <= {"valid", "valid, differs", "refused later"}
    assert len(tried) == COUNT


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    for index in range(len(KINDS)):
        if kind_of(index) in ("no plain file", "links"):
            continue
        one, other = (make(7, index, tmp_path / f"{index}{n}") for n in "ab")
        assert one == other
        first, second = ((tmp_path / f"{index}{n}/model/model.onnx").read_bytes() for n in "ab")
        assert first == second or kind_of(index) == "location"


@pytest.fixture(scope="module")
def process() -> Iterator[Isolated[Case, Outcome]]:
    """One process for all harms; the one that crashes is replaced."""
    with Isolated(attempt, 1) as made:
        yield made


@pytest.mark.skipif(sys.platform != "linux", reason="its processes are bounded as Linux does")
@pytest.mark.parametrize(
    ("harm", "pattern"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed"),
        ("open('../outside', 'rb').read()", "opened"),
        ("import pathlib; pathlib.Path('../../other').mkdir()", "os.mkdir"),
        ("import pickle; pickle.loads(b'cos\\nsystem\\n.')", "pickle.find_class"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "socket.connect"),
        ("raise RecursionError", "raised RecursionError"),
    ],
)
def test_harm_is_seen(
    tmp_path: Path, harm: str, pattern: str, process: Isolated[Case, Outcome]
) -> None:
    """What the test above would miss if its watch slept."""
    case = Case(0, 0, tmp_path / "case", harm)
    (found,) = process.map([case])
    said = f"{found.what} {found.why}" if isinstance(found, Failure) else found.wrong
    assert pattern in said
