"""``mpcompile inspect`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs.model_files import write_model

from mpcompile.cli import exit_code
from mpcompile.pipeline import transform
from mpcompile.program.workload import load
from mpcompile.speed.devices import DEVICES
from mpcompile.speed.least_time import bound

HOSTILE = r"\x1b[31m[bold red]evil[/]"
MODEL = f"""\
import torch
from torch import nn
from mpcompile import Workload

def loss(model, x):
    return model(x).square().mean()

def workload():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(16, 32))
    model.add_module("{HOSTILE}", nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Workload(model, (torch.randn(8, 16),), loss, optimizer)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_model(tmp_path, monkeypatch, MODEL)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """Return the document and what people read."""
    assert exit_code(["inspect", "model.py", "--json", "-", *arguments]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_it_prints_changes_bound_and_kernels_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in folder.iterdir()}
    assert exit_code(["inspect", "model.py"]) == 0
    out = capsys.readouterr().out
    for word in ("hoist_weight_casts", "NVIDIA H100 SXM", "arithmetic", "addmm (forward)", "first"):
        assert word in out
    assert {path.name for path in folder.iterdir()} - before <= {"__pycache__"}


def test_the_document_says_what_the_bound_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, _ = inspect(capsys, "--device", "v100")
    made = transform(load("model.py"))
    assert made.step is not None
    expected = bound(made.step, DEVICES["v100"])
    assert document["changes"] == made.changes
    (found,) = document["bounds"]
    assert found["device"] == "v100"
    assert (found["flops"], found["bytes"]) == (expected.flops, expected.bytes)
    assert found["seconds"] == pytest.approx(expected.seconds)
    parts = found["arithmetic"] + found["memory"] + found["update"]
    assert parts == pytest.approx(found["seconds"])
    assert len(found["largest"]) == len(expected.kernels) == 7
    times = [kernel["seconds"] for kernel in found["largest"]]
    assert times == sorted(times, reverse=True)
    first = next(kernel for kernel in found["largest"] if kernel["name"] == "addmm")
    assert first["module"] == "first"
    assert first["flops"] == 2 * 8 * 16 * 32
    assert first["reads"] == 2 * (8 * 16 + 16 * 32 + 32)
    assert first["bound_by"] == "arithmetic"


def test_all_compares_the_devices_of_the_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, people = inspect(capsys, "--device", "all")
    assert [item["device"] for item in document["bounds"]] == list(DEVICES)
    assert all(device.title in people for device in DEVICES.values())


def test_the_cpu_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, people = inspect(capsys, "--device", "cpu")
    assert document["bounds"][0]["seconds"] > 0
    assert "this CPU" in people


def test_flags_decide_precisions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed, _ = inspect(capsys)
    plain, _ = inspect(capsys, "--precision", "fp32")
    assert plain["changes"].get("insert_casts", 0) == 0 < mixed["changes"]["insert_casts"]
    assert plain["bounds"][0]["bytes"] > mixed["bounds"][0]["bytes"]
    assert plain["bounds"][0]["flops"] == mixed["bounds"][0]["flops"]
    assert plain["bounds"][0]["arithmetic"] == pytest.approx(2 * mixed["bounds"][0]["arithmetic"])


def test_names_of_the_model_do_nothing_to_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["inspect", "model.py"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert HOSTILE in out


def test_a_program_without_a_step_has_no_bound(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = MODEL.replace(", loss, optimizer)", ")")
    (folder / "model.py").write_text(source)
    document, people = inspect(capsys)
    assert "bounds" not in document
    assert list(document["ops"]) == ["forward"]
    assert "least time of a step" not in people


def test_an_unknown_device_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["inspect", "model.py", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
