"""``mpcompile tune`` as a user types it, and the file of trials that comes from anyone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from mpcompile import BadInput
from mpcompile.cli import exit_code
from mpcompile.search.trial_log import Reference, Suspect, Suspects, Trial, TrialLog
from mpcompile.settings import read_settings

# It seeds nothing: tune does.
MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

class Bounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.rise, self.end = nn.Linear(8, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.rise.weight.mul_(1e6)

    def forward(self, x):
        return self.end(torch.tanh(self.rise(x)))

def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)

def workload():
    model = Bounded()
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(3)]
    return Workload(model, data[0], loss, torch.optim.SGD(model.parameters(), lr=1e-3), data)

def score(step, workload):
    for batch in workload.data:
        value = step(*batch)
    return -float(value)

def no_number(step, workload):
    return None
"""
FULL = ("node:linear", "node:tanh")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_what_is_found_is_printed_and_written_as_overrides(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["tune", "model.py", "--level", "paper"]) == 0
    said = capsys.readouterr().out
    assert "return to FP32: 2 of 3 ops" in said
    assert "without them the loss is nan" in said
    assert "model.py:13" in said
    assert read_settings(folder / "model.tune.toml").full == FULL
    again = said.strip().splitlines()[-1]
    assert again == ("mpcompile run model.py --level paper --full node:linear --full node:tanh")
    assert exit_code([*shlex.split(again)[1:], "--steps", "3", "--json", "-"]) == 0
    trained = document(capsys)
    assert trained["skipped"] == 0
    assert exit_code(["run", "model.py", "--steps", "3", "--no-check", "--json", "-"]) == 0
    assert document(capsys)["skipped"] == 3


def test_the_document_holds_what_was_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["tune", "model.py", "-o", "found.toml", "--json", "-"]) == 0
    made = document(capsys)
    assert made["full"] == list(FULL)
    assert made["output"] == "found.toml"
    assert made["candidates"] == 3
    assert made["trials"] == len((folder / "found.jsonl").read_text().splitlines()) - 2
    linear, tanh = made["ops"]
    assert linear["error"] is None  # infinite, which JSON has not
    assert (linear["module"], linear["line"]) == ("rise", 13)
    assert tanh["error_in_fp32"] < 1e-3


def test_a_function_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge.py").write_text(
        "def score(step, workload):\n    return float(step(*workload.batch) < 100)\n"
    )
    assert exit_code(["tune", "model.py", "--eval", "model.py:score", "--json", "-"]) == 0
    # A tanh of infinity is right, so for the score one op is enough.
    assert document(capsys)["full"] == list(FULL[:1])
    assert exit_code(["tune", "model.py", "--eval", "judge:score", "--score", "1", "--json", "-",
                      "-o", "b.toml"]) == 0  # fmt: skip
    assert document(capsys)["full"] == list(FULL[:1])


def test_nothing_to_return(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--full", "rise", "--full", "tanh"]
    assert exit_code(["tune", "model.py", *flags]) == 0
    said = capsys.readouterr().out
    assert "no op has to return to FP32; with 1 ops in 16 bits the largest" in said
    assert read_settings(folder / "model.tune.toml").full == ()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--plan", "plan.json"], 2, "--plan overrides every override that tune tries"),
        (["--steps", "-1"], 2, "--steps is -1; give at least 0"),
        (["--batches", "0"], 2, "--batches is 0; give at least 1"),
        (["--tolerance", "nan"], 2, "--tolerance is nan"),
        (["--score", "1"], 2, "--score needs a function that computes a score"),
        (["--eval", "model.py"], 2, "'model.py' does not name a function"),
        (["--eval", "model.py:nothing"], 2, "the file defines no function nothing"),
        (["--eval", "nowhere.py:score"], 2, "nowhere.py: there is no such file"),
        (["--eval", "no.where:score"], 2, "there is no module 'no.where'"),
        (["--eval", "model.py:no_number"], 2, "returned a NoneType, not a number"),
        (
            ["--eval", "model.py:score", "--score", "9"],
            1,
            "the requirement does not hold in FP32 either",
        ),
        (["--eval", "model.py:score", "--score", "1", "--tolerance", "1"], 2, "leave out one"),
        (["--resume"], 2, "model.tune.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str
) -> None:
    assert exit_code(["tune", "model.py", *words]) == code
    said = capsys.readouterr().err
    assert said.startswith("mpcompile: ")
    assert sentence in said
    assert not (folder / "model.tune.toml").exists()


def test_onnx_and_data_that_is_gone_after_one_pass_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["tune", "model.onnx"]) == 2
    text = MODEL.replace("lr=1e-3), data)", "lr=1e-3), iter(data))")
    (folder / "once.py").write_text(text)
    assert exit_code(["tune", "once.py", "--eval", "once.py:score"]) == 2
    assert "can be read only once" in capsys.readouterr().err
    assert exit_code(["tune", "once.py", "--batches", "3"]) == 0


def test_resume_goes_on_and_refuses_another_search(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["tune", "model.py"]) == 0
    trials, found = folder / "model.tune.jsonl", folder / "model.tune.toml"
    lines, text = trials.read_text().splitlines(keepends=True), found.read_text()
    assert exit_code(["tune", "model.py"]) == 2
    found.unlink()
    assert exit_code(["tune", "model.py"]) == 2
    assert "model.tune.jsonl already exists" in capsys.readouterr().err
    trials.write_text("".join(lines[:3]))
    assert exit_code(["tune", "model.py", "--resume"]) == 0
    assert "read 2 earlier trials" in capsys.readouterr().out
    assert found.read_text() == text
    found.unlink()
    assert exit_code(["tune", "model.py", "--resume", "--tolerance", "0.5", "--batches", "1"]) == 2
    said = capsys.readouterr().err
    assert (
        "the judge is '--tolerance 0.25' in the file and '--tolerance 0.5' in this search" in said
    )
    assert "--batches is '2' in the file and '1' in this search" in said
    (folder / "model.py").write_text(MODEL.replace("1e6", "1e5"))
    assert exit_code(["tune", "model.py", "--resume"]) == 2
    assert "the start (weights and buffers) is" in capsys.readouterr().err
    assert exit_code(["tune", "model.py", "--force"]) == 0


HEAD = '{"kind":"head","version":1,"asked":{}}\n'
TRIAL = '{"kind":"trial","full":["a"],"holds":true,"why":"so","seconds":0.5}\n'


def test_what_is_noted_is_read_back(tmp_path: Path) -> None:
    log = TrialLog.begin(tmp_path / "a.jsonl", {"the judge": "strict"})
    some = Suspect(op="a", suspicion=float("inf"), error=float("inf"), own=1.0, vanished=0.5)
    log.note(Suspects(suspects=(some,)))
    log.note(Reference(score=0.1))
    log.note(Trial(full=("a", "b"), holds=False, why="é\n", seconds=0.25))
    again = TrialLog.resume(tmp_path / "a.jsonl", {"the judge": "strict"})
    assert (again.suspects, again.reference, again.trials) == ((some,), 0.1, log.trials)


@pytest.mark.parametrize("torn", ["{", TRIAL.strip(), '{"kind":"trial","full":["\u00e9'])
def test_a_last_line_that_breaks_off_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((HEAD + TRIAL + torn).encode()[:-1])
    log = TrialLog.resume(path, {})
    assert set(log.trials) == {frozenset("a")}
    assert path.read_text() == HEAD + TRIAL
    path.write_text(HEAD[:-5])
    assert TrialLog.resume(path, {}).trials == {}
    assert path.read_text() == HEAD


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x\n", "a.jsonl:1: this is not a line of trials: this is not JSON"),
        (TRIAL, "the first line does not describe a search"),
        (HEAD.replace("1", "2"), "this is not a line of trials"),
        (HEAD + "[]\n", "a.jsonl:2: this is not a line of trials"),
        (HEAD + '{"kind":"virus"}\n', "this is not a line of trials"),
        (HEAD + TRIAL.replace("0.5", "-1"), "seconds should be greater than or equal to 0"),
        (HEAD + TRIAL.replace("0.5", "NaN"), "this is not a line of trials"),
        (HEAD + TRIAL.replace('"so"', '"so","more":1'), "there is no field trial.more"),
        (HEAD + TRIAL.replace("true", '"yes"'), "holds should be a valid boolean"),
        (HEAD + TRIAL.replace('["a"]', '"a"'), "full should be a list"),
        (HEAD + "\xff\n", "this is not a line of trials"),
    ],
)
def test_a_file_of_trials_may_come_from_anyone(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(BadInput) as caught:
        TrialLog.resume(path, {})
    assert sentence in str(caught.value)
    assert path.read_text(encoding="latin-1") == text


def test_suspects_of_another_program_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["tune", "model.py"]) == 0
    (folder / "model.tune.toml").unlink()
    trials = folder / "model.tune.jsonl"
    trials.write_text(trials.read_text().replace('"op":"tanh"', '"op":"linear"'))
    assert exit_code(["tune", "model.py", "--resume"]) == 2
    assert "the recorded ops are not the ops of this program" in capsys.readouterr().err
