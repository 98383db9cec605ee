"""Optional passes: left out by a call, a flag or a setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpcompile import BadInput
from mpcompile.cli import exit_code
from mpcompile.passes.order import OPTIONAL, matmul_passes
from mpcompile.passes.runner import pass_name
from mpcompile.pipeline import transform
from mpcompile.program.workload import load
from mpcompile.step.transformed import Choices

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 32), nn.Linear(16, 32)

    def forward(self, x):
        return self.one(x) * self.two(x)

def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)

def workload():
    model = nn.Sequential(Twice(), nn.Linear(32, 4))
    batches = [(torch.randn(8, 16), torch.randint(0, 4, (8,)))]
    return Workload(model, batches[0], loss, torch.optim.SGD(model.parameters()), batches)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def applied(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, int]:
    assert exit_code(["model.py", "--force", "--json", "-", *options]) == 0
    found: dict[str, int] = json.loads(capsys.readouterr().out)["passes"]
    return found


def test_a_flag_or_a_setting_leaves_a_pass_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert applied(capsys) == {"join_matmuls": 2}
    assert applied(capsys, "--without", "join_matmuls") == {}
    (folder / "pyproject.toml").write_text('[tool.mpcompile]\nwithout = ["join_matmuls"]\n')
    assert applied(capsys) == {}


def test_a_pass_that_does_not_exist_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["run", "model.py", "--without", "join_matmul"]) == 2
    assert capsys.readouterr().err == (
        "mpcompile: there is no pass 'join_matmul' to leave out (did you mean 'join_matmuls'?); "
        f"the optional passes are {', '.join(OPTIONAL)}.\n"
    )
    with pytest.raises(BadInput, match="there is no pass 'hoist_weight_casts' to leave out"):
        transform(load("model.py"), Choices(without=["hoist_weight_casts"]))


def test_the_names_are_those_of_the_passes() -> None:
    assert tuple(map(pass_name, matmul_passes({}))) == OPTIONAL
    assert matmul_passes({}, OPTIONAL) == ()
