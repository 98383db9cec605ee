"""``mpcompile run`` with checkpoints: killed or stopped, it goes on as if it had never ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from root import ROOT

from bench.robustness.kill_test import compiled, program
from mpcompile import BadInput
from mpcompile.cli import exit_code
from mpcompile.commands.training.saved_run import SavedRun
from mpcompile.numerics.run_log import read_run_log
from mpcompile.options.run import CheckpointFlags
from mpcompile.program.random_state import seed_all
from mpcompile.program.workload import Workload
from mpcompile.train.checkpoint_file import MANIFEST
from mpcompile.train.checkpoint_folder import checkpoints
from mpcompile.train.data_position import Batches

MODEL = f"""\
import os, signal, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from dataclasses import replace
from bench.robustness.kill_test import program

class Signalled:
    '''Data that sends its own process a signal with a batch, and a second one later.'''

    def __init__(self, data, number, at):
        self.data, self.number, self.left = data, number, at

    def __iter__(self):
        for batch in self.data:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
            yield batch

def workload():
    made = program()
    if "SIGNAL" in os.environ:
        number, at = map(int, os.environ["SIGNAL"].split())
        made = replace(made, data=Signalled(made.data, number, at))
    return made
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*options: str) -> int:
    return exit_code(["run", "model.py", *options])


@pytest.fixture
def undisturbed(folder: Path) -> bytes:
    assert run("--steps", "20", "--out", "whole", "--log", "whole.jsonl") == 0
    (only,) = checkpoints(folder / "whole")
    return (only / MANIFEST).read_bytes()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_lets_the_step_finish_and_saves_it(
    folder: Path,
    undisturbed: bytes,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(number)
    options = ("--steps", "20", "--out", "out", "--checkpoint-every", "3", "--log", "log.jsonl")
    monkeypatch.setenv("SIGNAL", f"{number} 8")
    assert run(*options) == code
    assert signal.getsignal(number) is before
    assert "after step 8: the run is saved; continue it with --resume" in capsys.readouterr().out
    names = [path.name for path in checkpoints(folder / "out")]
    assert names == ["step-00000008", "step-00000006", "step-00000003"]
    monkeypatch.delenv("SIGNAL")
    assert run(*options, "--resume", "--json", "-") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["first"], document["steps"]) == (8, 12)
    assert (checkpoints(folder / "out")[0] / MANIFEST).read_bytes() == undisturbed
    assert read_run_log(Path("log.jsonl")) == read_run_log(Path("whole.jsonl"))
    assert run(*options, "--resume") == 0
    assert "0 steps: loss scale" in capsys.readouterr().out


def test_a_killed_process_goes_on_from_its_newest_checkpoint(
    folder: Path, undisturbed: bytes
) -> None:
    """A process of its own, killed with a batch; its log has steps that are run again."""
    command = [sys.executable, "-m", "mpcompile", "run", "model.py", "--steps", "20", "--out", "o"]
    command += ["--checkpoint-every", "4", "--log", "log.jsonl", "--resume"]
    # Another number of threads adds up in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    deadly = {**environment, "SIGNAL": f"{signal.SIGKILL} 12"}
    assert subprocess.run(command, env=deadly, capture_output=True).returncode == -9
    assert [path.name[-2:] for path in checkpoints(folder / "o")] == ["08", "04"]
    assert len(read_run_log(Path("log.jsonl"))) == 11
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert (checkpoints(folder / "o")[0] / MANIFEST).read_bytes() == undisturbed
    assert read_run_log(Path("log.jsonl")) == read_run_log(Path("whole.jsonl"))


def test_a_second_signal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = program()
    saved = SavedRun(compiled(made), made, CheckpointFlags(tmp_path), Console(quiet=True))
    batches = saved.batches(5)
    next(batches)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    batches.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_said_and_passed_over(
    folder: Path, undisturbed: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--steps", "12", "--out", "out", "--checkpoint-every", "6") == 0
    (folder / "out/step-00000012/plan.json").write_text("{}")
    capsys.readouterr()
    assert run("--steps", "20", "--out", "out", "--resume") == 0
    said = capsys.readouterr()
    (warning,) = [line for line in said.err.splitlines() if "warning" in line]
    assert warning.startswith(
        "mpcompile: warning: out/step-00000012/plan.json: the file has 2 bytes, but"
    )
    assert "continuing from out/step-00000006 after 6 steps." in said.out
    assert (checkpoints(folder / "out")[0] / MANIFEST).read_bytes() == undisturbed


def test_scalars_of_steps_that_are_run_again_are_replaced(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = ("--out", "out", "--checkpoint-every", "4", "--tensorboard", "events")
    assert run("--steps", "6", *options) == 0
    shutil.rmtree("out/step-00000006")
    assert run("--steps", "9", *options, "--resume") == 0
    found = accumulator.EventAccumulator("events")
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(9))


def test_what_cannot_be_is_refused_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, why in (
        (["--resume"], "need --out"),
        (["--checkpoint-every", "2"], "need --out"),
        (["--out", "o", "--checkpoint-every", "0"], "--checkpoint-every is 0"),
        (["--out", "o", "--keep", "0"], "--keep is 0"),
        (["--out", "model.py"], "not a folder"),
    ):
        assert run("--steps", "2", *options) == 2
        assert why in capsys.readouterr().err
    assert run("--steps", "2", "--out", "o", "--resume") == 0
    assert "there is no checkpoint in o yet; the run starts at step 0" in capsys.readouterr().out
    assert run("--steps", "2", "--out", "o") == 2
    assert "give --resume to continue that run" in capsys.readouterr().err
    assert run("--steps", "4", "--out", "o", "--resume", "--precision", "bf16") == 2
    assert "has another plan" in capsys.readouterr().err
    (folder / "log").write_text("no log")
    assert run("--steps", "4", "--out", "o", "--resume", "--log", "log") == 2
    assert (folder / "log").read_text() == "no log"


class Own:
    """Data with a generator of its own that goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        order = torch.randperm(4, generator=self.generator)
        return iter([(row,) for row in order])


class Global:
    """Data that is shuffled with the global generator, and draws from it for each batch too."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        for row in torch.randperm(4):
            yield (row + torch.rand(()),)


class Keeping(Own):
    """Data that knows its place, and draws when it is iterated as torchdata's loader does."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        torch.randint(9, ())
        return self._rest()

    def _rest(self) -> Iterator[tuple[torch.Tensor]]:
        for self.at in range(self.at + 1, 5):  # noqa: B020
            yield (torch.tensor(self.at),)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def batches_of(data: Any) -> Batches:
    net = torch.nn.Linear(1, 1)
    return Batches(Workload(net, (torch.zeros(1),), data=data), torch.device("cpu"))


def taken(batches: Batches, count: int) -> list[float]:
    """Take batches, each followed by a step that draws a random number."""
    return [float(next(batches)[0]) + float(torch.rand(())) for _ in range(count)]


@pytest.mark.parametrize("kind", [Own, Global, Keeping])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 11])
def test_data_goes_on_at_its_place(kind: Any, count: int) -> None:
    seed_all(0)
    whole = batches_of(kind())
    taken(whole, count)
    place, numbers = whole.state_dict(), torch.get_rng_state()
    expected = taken(whole, 9)
    seed_all(99)
    again = batches_of(kind())
    again.load_state_dict(place)
    torch.set_rng_state(numbers)
    assert taken(again, 9) == expected


def test_data_without_the_place_is_refused() -> None:
    batches = batches_of(Own())
    taken(batches, 7)
    place = batches.state_dict()
    with pytest.raises(BadInput, match="ends after 2 batches, before batch 3"):
        batches_of([(torch.zeros(1),)] * 2).load_state_dict(place)
    with pytest.raises(BadInput, match=r"has a state_dict\(\), unlike the data of"):
        batches_of(Keeping()).load_state_dict(place)
    with pytest.raises(BadInput, match=r"has no load_state_dict\(\), unlike the data of"):
        batches.load_state_dict({"loader": {}})
    for state in (7, {}, {**place, "epoch": "0"}, {**place, "start": {"torch": 3}}):
        with pytest.raises(BadInput):
            batches.load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="gave no batch"):
        next(batches_of([]))
