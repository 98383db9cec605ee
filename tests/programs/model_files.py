"""A small training program as a file ``model.py``, as a user would write and name it."""

from __future__ import annotations

from pathlib import Path

import pytest

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

def loss(model, x):
    return model(x).square().mean()

def workload():
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.Linear(64, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return Workload(model, (torch.randn(8, 16),), loss, optimizer)
"""


def write_model(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = MODEL) -> Path:
    """Write ``model.py`` into a folder, go there, and make the terminal wide; return the folder."""
    (folder / "model.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    return folder
