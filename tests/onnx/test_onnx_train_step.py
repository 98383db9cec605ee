"""A train.onnx in ONNX Runtime: its state, its skipped steps, and files that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from programs import onnx_linear_step as linear
from root import ROOT
from safetensors.numpy import load_file, save_file

from mpcompile import BadInput
from mpcompile.onnx.train_step import OrtTrainStep

SCRIPT = ROOT / "docs" / "examples" / "train_onnx.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return linear.write(tmp_path)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Return the names whose bits, dtype and shape are the same."""
    assert one.keys() == other.keys()
    return [
        name
        for name, value in one.items()
        if value.dtype == other[name].dtype
        and value.shape == other[name].shape
        and value.tobytes() == other[name].tobytes()
    ]


@pytest.mark.parametrize(("half", "tolerance"), [("float16", 2e-3), ("float32", 1e-5)])
def test_it_trains_like_the_same_step_in_numpy(tmp_path: Path, half: str, tolerance: float) -> None:
    step = OrtTrainStep(linear.write(tmp_path, half))
    state = linear.first_state(half, 1024.0)
    rates = [0.05, 0.05, 0.02, 0.0, 0.05, 0.1, 0.01, 0.05]
    for rate, (x, y) in zip(rates, linear.batches(8), strict=True):
        step.set_rate(rate)
        expected, state = linear.by_hand(state, x, y, rate)
        # A loss is a square of differences, so their rounding weighs more.
        np.testing.assert_allclose(np.asarray(step(x, y)), expected, rtol=5 * tolerance)
    found = step.state()
    for name, value in state.items():
        wide = found[name].astype(np.float64), np.asarray(value).astype(np.float64)
        np.testing.assert_allclose(*wide, rtol=tolerance, atol=5 * tolerance, err_msg=name)
    assert (step.loss_scale, step.taken, step.skipped) == (4096.0, 8, 0)
    assert step.rates == {0: 0.05}


def test_a_rate_of_zero_leaves_the_weights_and_another_group_is_refused(path: Path) -> None:
    step = OrtTrainStep(path)
    before = step.parameters()["weight"]
    step.set_rate(0.0)
    step(*linear.batches(1)[0])
    np.testing.assert_array_equal(step.parameters()["weight"], before)
    with pytest.raises(BadInput, match="no parameter group 1"):
        step.set_rate(0.1, 1)


@pytest.mark.parametrize("turn", [0, 1])
def test_a_planted_inf_leaves_the_state_bit_identical(path: Path, turn: int) -> None:
    step = OrtTrainStep(path)
    good = linear.batches(turn + 1)
    for batch in good:
        step(*batch)
    before = step.state()
    x, y = (array.copy() for array in good[0])
    x[3, 1] = np.inf
    step(x, y)
    after = step.state()
    changed = before.keys() - set(same(before, after))
    assert changed == {"loss_scale", "growth_tracker", "steps_skipped"}
    assert (step.loss_scale, step.taken, step.skipped) == (512.0, turn + 1, 1)
    step(*good[0])
    assert "arena0.master" not in same(after, step.state())
    assert step.taken == turn + 2


def test_state_alternates_between_two_memories_and_nothing_is_copied(path: Path) -> None:
    step = OrtTrainStep(path)
    seen: list[list[int]] = []
    for batch in linear.batches(4):
        turn = step._turn
        step(*batch)
        seen.append([value.data_ptr() for value in step._bindings[turn].get_outputs()])
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert not set(seen[0]) & set(seen[1])
    addresses = {m.value.data_ptr() for pair in step._state.values() for m in pair}
    assert set(seen[0][1:] + seen[1][1:]) <= addresses


def test_a_loss_keeps_its_value(path: Path) -> None:
    batches = linear.batches(5)
    read_at_once = [float(step(*b)) for step in [OrtTrainStep(path)] for b in batches]
    step = OrtTrainStep(path)
    kept = [step(*b) for b in batches]
    assert [float(loss) for loss in kept] == read_at_once
    assert np.asarray(kept[0]).shape == ()
    assert np.asarray(kept[0]).dtype == np.float32
    assert len(set(read_at_once)) == 5


def test_training_from_saved_state_equals_training_without_a_break(
    path: Path, tmp_path: Path
) -> None:
    batches = linear.batches(6)
    straight = OrtTrainStep(path)
    losses = [float(straight(*b)) for b in batches]
    first = OrtTrainStep(path)
    for b in batches[:3]:
        first(*b)
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"old")
    first.save(file)
    assert {f.name for f in tmp_path.iterdir()} == {
        "train.onnx", "train.json", "train.safetensors", "state.safetensors"
    }  # fmt: skip
    again = OrtTrainStep(path)
    again(*batches[5])  # the other memory of the pair is the current one
    again.load(file)
    assert [float(again(*b)) for b in batches[3:]] == losses[3:]
    assert len(same(again.state(), straight.state())) == 9


def test_a_state_that_does_not_fit_changes_nothing(path: Path, tmp_path: Path) -> None:
    step = OrtTrainStep(path)
    before = step.state()
    other = {**before, "loss_scale": np.array(1.0)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match=r"loss_scale is float64\[\] in the file, but float32\[\]"):
        step.load(tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="no such file"):
        step.load(tmp_path / "nothing.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(BadInput, match="not a safetensors file"):
        step.load(tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="cannot be written"):
        step.save(tmp_path / "no folder" / "state.safetensors")
    assert len(same(before, step.state())) == 9


def test_pieces_are_cut_out_of_the_arenas(path: Path) -> None:
    step = OrtTrainStep(path)
    step(*linear.batches(1)[0])
    state, pieces = step.state(), step.pieces()
    assert {n: (p.dtype.name, p.shape) for n, p in pieces.items()} == {
        "weight": ("float32", (1, 4)),
        "weight::momentum_buffer": ("float32", (1, 4)),
        "weight::step": ("float32", ()),
        "offset": ("float32", (1,)),
    }
    np.testing.assert_array_equal(pieces["weight"][0], state["arena0.master"][:4])
    assert step.parameters().keys() == {"weight", "offset"}
    pieces["weight"][:] = 7  # a copy
    assert not (step.parameters()["weight"] == 7).any()


@pytest.mark.parametrize("of", [torch.from_numpy, lambda array: np.asfortranarray(array)])
def test_a_batch_may_come_from_any_library(path: Path, of: Callable[[np.ndarray], Any]) -> None:
    x, y = linear.batches(1)[0]
    assert float(OrtTrainStep(path)(of(x), of(y))) == float(OrtTrainStep(path)(x, y))


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ((np.zeros((8, 4), np.float32),), "called with 1 arrays; give 2: x, y"),
        ((np.zeros((8, 4)), np.zeros(8, np.float32)), r"x is float64\[8, 4\]"),
        ((np.zeros((7, 4), np.float32), np.zeros(8, np.float32)), r"x is float32\[7, 4\]"),
        (([[1.0]], np.zeros(8, np.float32)), "x is a list"),
        ((torch.zeros(8, 4, requires_grad=True), np.zeros(8)), "x cannot be read as an array"),
    ],
)
def test_a_batch_that_does_not_fit_changes_nothing(
    path: Path, batch: tuple[object, ...], sentence: str
) -> None:
    step = OrtTrainStep(path)
    before = step.state()
    with pytest.raises(BadInput, match=sentence) as caught:
        step(*batch)
    assert "\n" not in str(caught.value)
    assert len(same(before, step.state())) == 9


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path.with_suffix(".json")
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: (d["state"].pop(), d["pieces"].pop()), "describes no input 'offset'"),
        (lambda d: d["state"][0].update(next=""), "describes no output 'arena0.master.next'"),
        (lambda d: d["state"][0].update(shape=[4]), r"'arena0.master' is .*not float32\[4\]"),
        (lambda d: d["batch"][0].update(dtype="float16"), r"'x' is .*not float16\[8, 4\]"),
        (lambda d: d.update(loss="other"), "graph has no output 'other'"),
        (lambda d: d["state"].append(d["state"][0]), "'arena0.master' is listed twice"),
        (lambda d: d["pieces"][0].update(start=30), "'weight' does not fit into 'arena0.master'"),
        (lambda d: d["pieces"][0].update(slot="none"), "'weight' does not fit into 'none'"),
        (lambda d: d.update(weights="../train.safetensors"), "outside the model's folder"),
        (lambda d: d.update(weights="nothing"), "nothing"),
        (lambda d: d["rates"].clear(), "describes no input 'group0.lr'"),
    ],
)
def test_a_description_that_does_not_fit_the_graph_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    edit(path, change)
    with pytest.raises(BadInput, match=sentence) as caught:
        OrtTrainStep(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_folder_or_another_step_are_refused(path: Path, tmp_path: Path) -> None:
    file = path.with_suffix(".safetensors")
    state = load_file(file)
    save_file({n: v for n, v in state.items() if n != "offset"}, file)
    with pytest.raises(BadInput, match="lacks 'offset'"):
        OrtTrainStep(path)
    save_file({**state, "more": state["offset"]}, file)
    with pytest.raises(BadInput, match="no 'more'"):
        OrtTrainStep(path)
    elsewhere = tmp_path.parent / f"{tmp_path.name}.elsewhere"
    save_file(state, elsewhere)
    file.unlink()
    os.link(elsewhere, file)
    with pytest.raises(BadInput, match="hard link"):
        OrtTrainStep(path)
    file.unlink()
    file.symlink_to(elsewhere)
    with pytest.raises(BadInput, match="outside the model's folder"):
        OrtTrainStep(path)


def test_a_step_that_the_runtime_cannot_run_gives_one_sentence(path: Path) -> None:
    model = linear.model("float16")
    model.graph.node.append(onnx.helper.make_node("Unknown", ["x"], ["z"], domain="none"))
    model.opset_import.append(onnx.helper.make_opsetid("none", 1))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="ONNX Runtime cannot run the step on cpu") as caught:
        OrtTrainStep(path)
    assert "\n" not in str(caught.value)


def test_missing_devices_are_refused(path: Path) -> None:
    with pytest.raises(BadInput, match="needs the device 'cuda'"):
        OrtTrainStep(path, cuda_graph=True)
    with pytest.raises(BadInput, match="device is 'tpu'"):
        OrtTrainStep(path, device="tpu")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match=r"cuda|CUDA"):
            OrtTrainStep(path, device="cuda")


def test_no_torch_is_imported(path: Path) -> None:
    code = (
        "import sys; from mpcompile.onnx import OrtTrainStep; "
        f"OrtTrainStep({str(path)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPT.parents[2])


def test_the_example_trains_the_same_without_torch_and_mpcompile(path: Path) -> None:
    batches = linear.batches(3)
    data = path.with_suffix(".npz")
    np.savez(data, x=np.stack([x for x, _ in batches]), y=np.stack([y for _, y in batches]))
    code = (
        "import runpy, sys; sys.modules.update(torch=None, mpcompile=None); "
        f"sys.argv[1:] = [{str(path)!r}, {str(data)!r}, '7']; runpy.run_path({str(SCRIPT)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=-1, text=True)
    step = OrtTrainStep(path)
    assert [float(line) for line in done.stdout.split()] == [
        float(step(*batches[index % 3])) for index in range(7)
    ]
    assert len(same(load_file(path.with_suffix(".trained")), step.state())) == 9
    assert len(SCRIPT.read_text().splitlines()) < 40
