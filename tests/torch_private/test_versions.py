"""A version of torch that nobody has tried is named once, and what it lacks is named too."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from programs.small_step import batch, compiled, net
from root import ROOT

import mpcompile
from mpcompile.torch_private import versions
from mpcompile.torch_private.versions import TRIED, is_tried, range_tried, release

SENTENCE = (
    f"mpcompile was tried on torch {range_tried()}, but this is torch 9.1.0+cpu: if something "
    "fails or differs, install a version of that range"
)
MODEL = """
import torch
from mpcompile import Workload

def workload():
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.randn(8, 4),)
    data = [batch] * 4
    return Workload(model, batch, lambda model, x: model(x).square().mean(), optimizer, data=data)
"""


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.1.0+cpu")
    monkeypatch.setattr(versions, "_warned", False)


def train() -> None:
    compiled(net())


def rewrite() -> None:
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.randn(2, 4),))
    mpcompile.rewrite(program)


def compile_by_torch() -> None:
    torch.compile(net(), backend="mpcompile")(batch()[0])


@pytest.mark.parametrize("use", [train, rewrite, compile_by_torch])
def test_an_untried_version_is_named_once(newer: None, use: Callable[[], None]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
        use()
    ours = [warning for warning in caught if warning.category is mpcompile.UntriedTorch]
    assert [str(warning.message) for warning in ours] == [SENTENCE]


def test_this_version_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", mpcompile.UntriedTorch)
        train()
    assert is_tried(torch.__version__)


def test_the_range_counts_the_first_two_numbers() -> None:
    oldest, newest = release(TRIED[0]), release(TRIED[-1])
    assert [release(version) for version in TRIED] == sorted(map(release, TRIED))
    assert release("2.15.0a0+git12345") == (2, 15)
    assert is_tried(f"{oldest[0]}.{oldest[1]}.9+cu130")
    assert is_tried(f"{newest[0]}.{newest[1]}.7")
    assert not is_tried(f"{oldest[0]}.{oldest[1] - 1}.9")
    assert not is_tried(f"{newest[0]}.{newest[1] + 1}.0a0")


def run(folder: Path, before: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, after a line of Python."""
    (folder / "net.py").write_text(MODEL)
    code = f"import sys, torch; {before}; from mpcompile.cli import main; sys.argv[1:] = {words!r}"
    return subprocess.run(
        [sys.executable, "-c", f"{code}; main()"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


NEWER = 'torch.__version__ = "9.1.0+cpu"'


@pytest.mark.parametrize(
    "words",
    [
        ("net.py",),
        ("calibrate", "net.py", "--batches", "2"),
        ("run", "net.py", "--steps", "2"),
    ],
)
def test_the_command_line_says_it_on_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, NEWER, *words)
    lines = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line for line in lines if "9.1.0" in line] == [f"mpcompile: warning: {SENTENCE}."]
    assert not any("UntriedTorch" in line or "Traceback" in line for line in lines)


def test_a_version_that_lacks_a_private_name_is_refused_in_one_sentence(tmp_path: Path) -> None:
    before = f"import torch.fx._lazy_graph_module as m; del m._LazyGraphModule; {NEWER}"
    done = run(tmp_path, before, "net.py")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert said.startswith("mpcompile: torch 9.1.0+cpu lacks a part that mpcompile needs (")
    assert said.endswith(f"; install torch {range_tried()}.")
    assert "_LazyGraphModule" in said
    assert "Traceback" not in said
