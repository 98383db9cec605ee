"""``mpcompile gradients``: what it prints, finds, writes and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mpcompile.cli import exit_code

MODEL = """\
import torch
from torch import nn
from mpcompile import Workload

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.loud = nn.Linear(16, 4)
        self.faint = nn.Linear(16, 4)

    def forward(self, x):
        whisper = self.faint(x)
        return self.loud(x) + FACTOR * whisper

def loss(model, x, y):
    return LOSS * nn.functional.cross_entropy(model(x), y)

def workload():
    torch.manual_seed(0)
    model = Net()
    batches = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(3)]
    return Workload(model, batches[0], loss, torch.optim.SGD(model.parameters(), lr=1e-5), batches)
"""


def written(folder: Path, factor: str = "1e-9", loss: str = "1.0") -> None:
    (folder / "model.py").write_text(MODEL.replace("FACTOR", factor).replace("LOSS", loss))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert exit_code(["gradients", "model.py", *arguments]) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, "--json", "-", *arguments))
    return found


def test_the_planted_underflow_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys)
    begins = [line for line in out.splitlines() if line.startswith("Underflow begins")]
    assert begins == [
        "Underflow begins at the gradient by linear (faint  model.py:12), which the backward of "
        "mul (model.py:13) makes: 100.0% of it is below 2^-24, with the scale 0.0%."
    ]
    assert "gradients by activations" in out
    assert "gradients by weights" in out
    assert "2^-24" in out
    assert "Without master weights" in out
    found = document(capsys)
    (begin,) = found["underflows"]
    assert begin["reader"] == "mul"
    assert begin["where"]["line"] == 13
    gradient = begin["gradient"]
    assert gradient["tensor"] == "linear"
    assert gradient["where"]["module"] == "faint"
    assert gradient["where"]["line"] == 12
    assert gradient["where"]["file"].endswith("model.py")
    lost = {item["name"] for item in found["gradients"] if item["lost"] > 0}
    assert lost == {"linear", "faint.weight", "faint.bias"}


def test_what_no_scale_saves_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(folder, factor="1e-20")
    assert "is below 2^-24, with the scale 100.0%." in said(capsys)


def test_the_recommended_scale_fits_and_its_double_does_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for loss in ("1.0", "1e5", "1e-7"):
        written(folder, loss=loss)
        found = document(capsys)
        scale = found["recommended_scale"]
        largest = max(item["largest"] for item in found["gradients"])
        assert largest * scale <= 65504 / 4 < largest * scale * 2
        assert (scale < 1.0) is (loss == "1e5")


def test_gradients_that_are_huge_already(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(folder, loss="1e7")
    out = said(capsys)
    assert "the largest overflow" in out
    assert "the gradients are too large without a scale" in out


def test_gradients_that_are_zero_or_not_finite(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(folder, loss="0.0")
    assert "All gradients are zero." in said(capsys)
    assert document(capsys)["recommended_scale"] is None
    written(folder, loss="float('inf')")
    assert "no loss scale can change that" in said(capsys)


def test_ranges_are_used_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["calibrate", "model.py", "--batches", "2"]) == 0
    capsys.readouterr()
    found = document(capsys, "--ranges", "model.ranges.json")
    assert found == document(capsys, "--batches", "2")
    (folder / "model.py").write_text((folder / "model.py").read_text().replace("16", "8"))
    assert exit_code(["gradients", "model.py", "--ranges", "model.ranges.json"]) == 2
    assert "another program" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_a_figure_is_written_once(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    said(capsys, "--figure", name)
    content = (folder / name).read_bytes()
    assert content.startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG")
    assert exit_code(["gradients", "model.py", "--figure", name]) == 2
    assert "--force" in capsys.readouterr().err
    said(capsys, "--figure", name, "--force")
    if name.endswith("svg"):
        assert (folder / name).read_bytes() == content


def test_without_matplotlib_only_a_figure_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "mpcompile.show.exponent_figure", raising=False)
    said(capsys)
    assert exit_code(["gradients", "model.py", "--figure", "a.svg"]) == 2
    assert "matplotlib, which is not installed" in capsys.readouterr().err
    assert not (folder / "a.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.py", "--figure", "a.pdf"], "neither .svg nor .png"),
        (["model.py", "--steps", "0"], "at least 1"),
        (["model.py", "--batches", "0"], "at least 1"),
        (["model.py", "--precision", "bf16"], "needs no loss scale"),
        (["model.py", "--full", "*"], "needs no loss scale"),
        (["empty.onnx"], "no loss and no optimizer"),
        (["bare.py"], "no gradients"),
        (["nowhere.py"], "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    folder: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bare.py").write_text(
        "import torch\nmodel, batch = torch.nn.Linear(2, 2), (torch.randn(1, 2),)\n"
    )
    (folder / "empty.onnx").touch()
    assert exit_code(["gradients", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("columns", ["50", "80", "140"])
def test_it_fits_the_width_without_colours(
    folder: Path, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    out = said(capsys)
    assert "\x1b" not in out
    plots = out[: out.index("Without a loss scale")].splitlines()
    assert max(map(len, plots)) <= int(columns)
    assert "FP16" in out
    assert "╌ lost" in out


def test_nothing_in_fp16_needs_no_scale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "model.py").read_text().replace("self.loud(x) +", "self.bias + self.loud(x) +")
    text = text.replace("self.loud = ", "self.bias = nn.Parameter(torch.zeros(4)); self.loud = ")
    text = text.replace("model.parameters()", "[model.bias]").replace(
        "    batches", "    model.loud.requires_grad_(False)\n    batches"
    )
    (folder / "model.py").write_text(text)
    out = said(capsys, "--full", "add", "--full", "mul")
    assert "no loss scale is needed" in out
    assert "Without master weights" in out
