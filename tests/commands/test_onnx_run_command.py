"""``mpcompile run train.onnx`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import onnx_linear_step as linear
from root import ROOT
from safetensors.numpy import load_file

from mpcompile.cli import exit_code
from mpcompile.onnx.train_step import OrtTrainStep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    linear.write(tmp_path)
    batches = linear.batches(3)
    x, y = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    np.savez(tmp_path / "batches.npz", x=x, y=y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_trains_an_epoch_after_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "run train.onnx --data batches.npz --steps 8 -o end.safetensors --json -".split()
    assert exit_code(arguments) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    step, batches = OrtTrainStep(folder / "train.onnx"), linear.batches(3)
    assert found["losses"] == [float(step(*batches[index % 3])) for index in range(8)]
    assert (found["steps"], found["taken"], found["skipped"]) == (8, 8, 0)
    assert found["loss_scale"] == step.loss_scale
    assert "8 steps: loss" in err
    end = load_file(folder / "end.safetensors")
    assert {n: v.tobytes() for n, v in end.items()} == {
        n: v.tobytes() for n, v in step.state().items()
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run train.onnx", "give --data FILE.npz"),
        ("run train.onnx --data none.npz", "no such file"),
        ("run train.onnx --data train.json", "not a .npz file"),
        ("run train.onnx --data batches.npz --steps 0", "--steps is 0"),
        ("run train.onnx --data batches.npz -o train.safetensors", "already exists"),
        (
            "run train.onnx --data batches.npz --level paper",
            "leave out --backend and the planner's flags",
        ),
        ("run none.onnx --data batches.npz", "none.onnx"),
        ("run none.py --data batches.npz", "none.py: there is no such file"),
        ("run empty.py --data batches.npz", "not an .onnx file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, sentence: str
) -> None:
    (folder / "empty.py").touch()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert exit_code(arguments.split()) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_batches_of_another_shape_or_with_objects_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "batches.npz", x=np.zeros((3, 7, 4), np.float32), y=np.zeros((3, 8)))
    assert exit_code(["run", "train.onnx", "--data", "batches.npz"]) == 2
    assert "'x' has the shape [3, 7, 4], not [8, 4]" in capsys.readouterr().err
    np.savez(folder / "batches.npz", x=np.array([{}]), y=np.zeros((3, 8), np.float32))
    assert exit_code(["run", "train.onnx", "--data", "batches.npz"]) == 2
    assert "Python objects" in capsys.readouterr().err


def test_no_torch_is_imported(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from mpcompile.cli import exit_code; "
        "sys.exit(exit_code('run train.onnx --data batches.npz --steps 2'.split()))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
