"""Commands that measure a step against its captured graph fail if the graph is not the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mpcompile import pipeline
from mpcompile.cli import exit_code
from mpcompile.options.plan_flags import PlanFlags
from mpcompile.program.capture import Forward, capture
from mpcompile.program.workload import Workload
from mpcompile.torch_private.ops import op_name

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

def loss(model, x):
    return model(x).square().mean()

def workload():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return Workload(model, (torch.randn(8, 16),), loss, torch.optim.SGD(model.parameters(), 0.1))
"""


@pytest.fixture
def unfaithful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose capture has another activation than the program."""

    def faulty(subject: Workload, *rest: Any) -> Forward:
        forward = capture(subject, *rest)
        for node in forward.module.graph.nodes:
            if op_name(node) == "relu":
                node.target = torch.ops.aten.sigmoid.default
        forward.module.recompile()
        return forward

    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "capture", faulty)


@pytest.mark.parametrize("command", ["check", "tune", "reduce", "inspect"])
def test_an_unfaithful_capture_fails(
    unfaithful: None, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([command, "model.py"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "the captured graph does not do what the program does: the loss is" in said


def test_the_flag_leaves_it_out(unfaithful: None) -> None:
    assert exit_code(["check", "model.py", "--no-verify"]) == 0


def test_the_flag_is_passed_on_as_it_was_given() -> None:
    assert PlanFlags(verify=False).words() == ("--no-verify",)
    assert PlanFlags().words() == ()
    assert PlanFlags(verify=False).given() == {}
