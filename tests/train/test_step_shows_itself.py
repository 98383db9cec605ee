"""A step says what it is, and an error of it is one sentence in a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs.small_step import batch, compiled, net
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, CannotCapture, LossScale


def test_a_step_and_its_plan_show_themselves() -> None:
    step = compiled(net(), loss_scale=LossScale(8.0))
    step(*batch())
    assert repr(step) == "<TrainStep in f16, by interpreter>"
    lines = step.summary().splitlines()
    assert lines[1].endswith("trained weights, 6 with a 16-bit copy")
    assert lines[2:4] == ["1 updates applied, 0 skipped", "loss scale 8"]
    assert lines[4] == str(step.plan).splitlines()[0]
    narrow = sum(each.computes is step.plan.precision for each in step.plan.decisions)
    assert lines[4].startswith(f"plan in f16: {narrow} of {len(step.plan.decisions)} ops compute")
    assert "a Tensor Core accumulates it in FP32" in step.summary()
    assert step._repr_html_() == f"<pre>{step.summary()}</pre>"


def test_a_step_in_fp32_has_no_loss_scale_to_show() -> None:
    step = compiled(net(), policy=FULL_PRECISION)
    assert "loss scale" not in step.summary()


def test_a_step_in_pieces_shows_its_pieces() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(x).square().mean()
        return value * 2 if value.item() > 1e9 else value

    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = mpcompile.compile(model, loss, optimizer, (torch.ones(2, 4),))
    step(torch.ones(2, 4))
    assert repr(step) == "<TrainStep in f16 in 1 piece, by interpreter>"
    assert step.summary().splitlines()[-len(step.pieces) :] == list(map(str, step.pieces))


SCRIPT = """
import torch, mpcompile
from torch import nn

def loss(model, x):
    value = model(x).square().mean()
    return value * 2 if value.item() > 1 else value

model = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
mpcompile.compile(model, loss, optimizer, (torch.ones(2, 4),), whole=True)
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_script_prints_the_sentence_of_an_error_alone(debug: bool, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "MPCOMPILE_DEBUG": "1" if debug else ""},
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mpcompile.errors.") and "script.py:7" in last
    assert ("direct cause" in done.stderr or "During handling" in done.stderr) is debug
    assert len(done.stderr.splitlines()) < 40 or debug


def test_what_stood_behind_an_error_is_kept() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(x).sum()
        return value * 2 if value > 0 else value

    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotCapture) as caught:
        mpcompile.compile(model, loss, optimizer, (torch.ones(2, 4),), whole=True)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caught.value.detail.startswith("Traceback")
