"""A run that is watched: the same numbers, causes of skipped steps, a log, scalars."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from nets.small_models import compiled
from planted import marked
from planted.marked import FORCED, line_of
from programs.model_files import write_model
from rich.console import Console
from root import ROOT
from torch import nn

from mpcompile import LossScale, Policy, Workload
from mpcompile.cli import exit_code
from mpcompile.commands.training.progress import train
from mpcompile.numerics.run_log import RunRow, read_run_log
from mpcompile.numerics.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore::mpcompile.UnmatchedOverride")
MODEL = f"""\
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from planted import marked

def workload():
    return marked.program(getattr(marked, os.environ.get("MIDDLE", ""), marked.nn.Identity))
"""


def watched(
    tmp_path: Path,
    made: Workload,
    steps: int,
    scale: LossScale,
    policy: Policy | None = None,
) -> tuple[list[float], tuple[RunRow, ...], str]:
    """Return losses, the rows of the log, and the printed text."""
    step = compiled(made, "interpreter", policy, scale)
    said, log = io.StringIO(), io.StringIO()
    console = Console(file=said, width=200)
    assert made.data is not None
    data = list(made.data)
    batches = [data[k % len(data)] for k in range(steps)]
    losses, _ = train(step, batches, steps, console, Watch(step, console, log))
    (tmp_path / "run.jsonl").write_text(log.getvalue())
    return losses, read_run_log(tmp_path / "run.jsonl"), said.getvalue()


def test_a_watched_run_computes_the_same_numbers(tmp_path: Path) -> None:
    made = marked.program(nn.Identity)
    plain = compiled(made, "interpreter", None, LossScale())
    assert made.data is not None
    data = list(made.data)
    expected = [float(plain(*data[k % 4])) for k in range(8)]
    losses, rows, _ = watched(tmp_path, marked.program(nn.Identity), 8, LossScale())
    assert losses == expected
    assert [row.loss for row in rows] == [
        pytest.approx(value) if torch.isfinite(torch.tensor(value)) else None for value in expected
    ]


def test_the_scalers_search_is_logged_but_not_printed(tmp_path: Path) -> None:
    scale = LossScale(initial=2.0**24)
    _, rows, said = watched(tmp_path, marked.program(nn.Identity), 12, scale)
    skipped = [row for row in rows if row.skipped]
    assert skipped
    assert not rows[-1].skipped
    for row in skipped:
        assert row.cause is not None
        assert row.cause.expected
        assert row.cause.stage == "backward"
    assert "was skipped" not in said
    assert [row.scale for row in rows[:2]] == [2.0**24, 2.0**23]


def test_an_overflow_in_forward_is_printed_at_once_and_once(tmp_path: Path) -> None:
    _, rows, said = watched(tmp_path, marked.program(marked.Logits), 6, LossScale())
    assert all(row.skipped and row.loss is None for row in rows)
    assert said.count("was skipped") == 1
    assert "step 0 was skipped: bmm (bmm, forward) in middle: its result reaches" in said
    assert f"marked.py:{line_of('logits')}" in said
    assert {row.cause.node for row in rows if row.cause} == {"bmm"}


def test_a_spike_at_a_scale_that_was_good_is_printed(tmp_path: Path) -> None:
    made = marked.program(nn.Identity)
    assert made.data is not None
    x, y = made.batch
    spiked = Workload(
        made.model, made.batch, made.loss, made.optimizer, data=[(x, y)] * 3 + [(x * 3e4, y)]
    )
    _, rows, said = watched(tmp_path, spiked, 4, LossScale())
    assert [row.skipped for row in rows] == [False, False, False, True]
    assert "step 3 was skipped" in said
    cause = rows[3].cause
    assert cause is not None
    assert not cause.expected


def test_many_skips_in_a_row_are_printed(tmp_path: Path) -> None:
    _, _, said = watched(tmp_path, marked.program(marked.Epsilon), 21, LossScale(), FORCED)
    assert "20 steps in a row were skipped." in said


def test_without_a_scale_a_loss_that_is_not_finite_is_printed(tmp_path: Path) -> None:
    scale = LossScale.none()
    _, rows, said = watched(tmp_path, marked.program(marked.Logits), 2, scale)
    assert not any(row.skipped for row in rows)
    assert "the loss of step 0 is not finite." in said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_model(tmp_path, monkeypatch, MODEL)


def test_run_writes_a_log_that_reads_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIDDLE", "Logits")
    assert exit_code(["run", "model.py", "--steps", "3", "--log", "run.jsonl", "--no-check"]) == 0
    out = capsys.readouterr().out
    rows = read_run_log(folder / "run.jsonl")
    assert [row.step for row in rows] == [0, 1, 2]
    assert [row.scale for row in rows] == [2.0**16, 2.0**15, 2.0**14]
    for row in rows:
        assert row.cause is not None
        assert (row.cause.op, row.cause.stage, row.cause.module) == ("bmm", "forward", "middle")
        assert Path(row.cause.file).name == "marked.py"
        assert row.cause.line == line_of("logits")
        assert "enter.weight" in row.cause.gradients
    assert "`--full node:matmul` keeps it in FP32." in out
    assert exit_code(["run", "model.py", "--steps", "3", "--log", "run.jsonl"]) == 2
    assert "run.jsonl already exists" in capsys.readouterr().err


def test_run_writes_scalars_that_tensorboard_reads(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert exit_code(["run", "model.py", "--steps", "4", "--tensorboard", "events"]) == 0
    found = accumulator.EventAccumulator(str(folder / "events"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "loss_scale", "skipped"}
    assert [event.step for event in found.Scalars("loss")] == [0, 1, 2, 3]
    assert found.Scalars("loss_scale")[0].value == 2.0**16


def test_a_step_in_onnx_runtime_keeps_no_log(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.onnx").touch()
    assert exit_code(["run", "train.onnx", "--log", "run.jsonl"]) == 2
    assert "writes no log" in capsys.readouterr().err
