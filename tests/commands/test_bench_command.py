"""`mpcompile bench`, and the arithmetic of putting variants side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpcompile.cli import exit_code
from mpcompile.commands import bench
from mpcompile.speed.side_by_side import compare, run_process, said, summarize

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)

def workload():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    batch = torch.randn(8, 16), torch.randint(0, 4, (8,))
    return Workload(model, batch, loss, torch.optim.AdamW(model.parameters(), lr=1e-2))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_way_is_timed_and_trains_alike(folder: Path) -> None:
    assert (
        exit_code(["bench", "model.py", "--steps", "4", "--warmup", "1", "--json", "b.json"]) == 0
    )
    found = json.loads((folder / "b.json").read_text())
    variants = found["variants"]
    assert set(variants) == {"fp32", "autocast", "compiled", "ours"}
    assert found["best_peer"] in {"fp32", "autocast", "compiled"}
    exact = variants["fp32"]["loss"]
    for run in variants.values():
        assert run["batch"] == 8
        assert len(run["runs"][0]["times_ms"]) == 4
        assert run["loss"] == pytest.approx(exact, abs=0.02)
        # 1 first, 1 to warm up, 4 timed: the loss has moved from where it began by now.
        assert run["loss"] < run["losses_before_timing"][0]
    assert variants["ours"]["verify_in_eager_steps"] > 0
    assert "verify_s" not in variants["fp32"]
    best = variants[found["best_peer"]]["median_ms"]
    ratio = variants["ours"]["times_faster_than_best_peer"]
    assert ratio == pytest.approx(best / variants["ours"]["median_ms"])


def test_a_way_that_fails_is_named_and_the_others_are_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager code may read a loss; a captured graph cannot."""
    monkeypatch.setattr(bench, "COMPARED", {"fp32": "eager FP32", "ours": "mpcompile"})
    text = MODEL.replace(
        "return nn.functional.cross_entropy(model(x), y)",
        "value = nn.functional.cross_entropy(model(x), y)\n"
        "    return value if float(value.detach()) > 0 else 2 * value",
    )
    (folder / "model.py").write_text(text)
    assert (
        exit_code(["bench", "model.py", "--steps", "2", "--warmup", "0", "--json", "b.json"]) == 1
    )
    variants = json.loads((folder / "b.json").read_text())["variants"]
    assert "median_ms" in variants["fp32"]
    assert "median_ms" not in variants["ours"]
    assert "mpcompile failed (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["model.py", "--steps", "1"], "--steps is 1"),
        (["model.py", "--warmup", "-1"], "--warmup is -1"),
        (["nowhere.py"], "there is no such file"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    folder: Path, arguments: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["bench", *arguments]) == 2
    assert wrong in capsys.readouterr().err


def test_what_is_compared_with_the_best_peer() -> None:
    def run(times: list[float], memory: int, setup: float) -> dict[str, object]:
        return {"times_ms": times, "memory": memory, "setup_s": setup, "batch": 10}

    variants = {
        "slow": summarize([run([4.0, 4.0, 5.0], 100, 1.0)]),
        "compiled": summarize([run([2.0, 2.0], 300, 8.0), run([2.0, 9.0], 400, 1.0)]),
        "ours": summarize([run([1.0, 1.0, 1.0], 50, 4.0)]),
        "broken": summarize([{"error": "no"}]),
    }
    best = compare(variants, {"slow", "compiled", "broken"})
    assert best == {"best_peer": "compiled", "leanest_peer": "slow"}
    assert variants["ours"]["times_faster_than_best_peer"] == 2.0
    assert variants["ours"]["memory_of_best_peer"] == 0.5
    assert variants["ours"]["setup_of_compiled"] == 0.5  # of its first round, the cold one
    assert variants["compiled"]["memory"] == 400
    assert variants["ours"]["samples_per_s"] == 10_000
    assert "median_ms" not in variants["broken"]
    assert compare({"ours": variants["ours"]}, {"slow"}) == {}


def test_a_process_gives_its_last_line_or_what_went_wrong(tmp_path: Path) -> None:
    good = run_process(["-c", "print('noise'); print('{\"a\": 1}')"], tmp_path, "x", 60)
    assert good == {"a": 1}
    bad = run_process(["-c", "raise ValueError('too bad')"], tmp_path, "x", 60)
    assert said(bad["error"]) == "ValueError: too bad"
    late = run_process(["-c", "while True: pass"], tmp_path, "x", 0.5)
    assert late == {"error": "stopped after 0 s"}
