"""``mpcompile model.onnx`` and ``mpcompile calibrate model.onnx``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from programs.onnx_models import FLOW, parsed

from mpcompile.cli import exit_code
from mpcompile.onnx.comparison import casts_of, compare, error_between
from mpcompile.onnx.measure import calibrate
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx.sessions import fault_of

OVERFLOWS = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) {
   [first] a = MatMul (x, v)
   [second] b = MatMul (a, v)
   [third] y = Tanh (b)
}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(parsed(FLOW), "flow.onnx")
    onnx.save(parsed(OVERFLOWS), "large.onnx")
    rng = np.random.default_rng(0)
    v = rng.normal(size=(3, 8, 8)).astype(np.float32)
    x = rng.normal(size=(3, 4, 8)).astype(np.float32)
    np.savez("large.npz", x=3000 * x, v=5 * v)
    np.savez("small.npz", x=x, v=v, k=np.array(True))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_rewritten_compared_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["flow.onnx", "-o", "out.onnx", "--data", "small.npz", "--json", "-"]) == 0
    document = said(capsys)
    assert document["changed"]
    assert document["errors"].keys() == {"y", "means", "h"}
    assert max(document["errors"].values()) < 2**-6
    assert document["casts_at_run_time"]
    onnx.checker.check_model(onnx.load("out.onnx"), full_check=True)
    assert json.loads((folder / "out.plan.json").read_text())["precision"] == "float16"
    assert exit_code(["flow.onnx", "-o", "out.onnx"]) == 2  # already exists
    arguments = ["flow.onnx", "-o", "again.onnx", "--plan", "out.plan.json", "--json", "-"]
    assert exit_code(arguments) == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_faults_of_a_graph_are_found() -> None:
    model = ir.from_proto(parsed(OVERFLOWS))
    assert fault_of(model) == ""
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    assert "type" in fault_of(model)


def test_what_overflows_is_kept_in_fp32_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["large.onnx", "-o", "unchecked.onnx", "--no-check", "--json", "-"]) == 0
    document = said(capsys)
    assert document["not_compared"] == "--no-check was given"
    assert document["kept"] == []
    mended = ["large.onnx", "-o", "out.onnx", "--data", "large.npz"]
    assert exit_code([*mended, "--json", "out.json"]) == 0
    assert "kept in FP32, because the outputs do not hold otherwise: first" in (
        " ".join(capsys.readouterr().out.split())
    )
    document = json.loads((folder / "out.json").read_text())
    assert {"node:first", "node:second"} <= {*document["kept"]}
    assert max(document["errors"].values()) < 2**-6
    flags = [word for pattern in document["kept"] for word in ("--full", pattern)]
    by_hand = ["large.onnx", "-o", "mended.onnx", "--data", "large.npz", *flags, "--json", "-"]
    assert exit_code(by_hand) == 0
    assert said(capsys)["kept"] == []
    assert (folder / "mended.onnx").read_bytes() == (folder / "out.onnx").read_bytes()
    assert exit_code(["calibrate", "large.onnx", "--data", "large.npz"]) == 0
    arguments = ["large.onnx", "-o", "ranged.onnx", "--data", "large.npz"]
    capsys.readouterr()
    assert exit_code([*arguments, "--ranges", "large.ranges.json", "--json", "-"]) == 0
    assert (folder / "ranged.onnx").exists()


def test_what_overflows_by_a_given_plan_is_named_and_not_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["large.onnx", "-o", "unchecked.onnx", "--no-check"]) == 0
    capsys.readouterr()
    arguments = ["large.onnx", "-o", "out.onnx", "--data", "large.npz"]
    assert exit_code([*arguments, "--plan", "unchecked.plan.json"]) == 1
    error = capsys.readouterr().err
    assert "made by first (MatMul)" in error or "made by second (MatMul)" in error
    assert "change the given plan, whose decisions count before overrides" in error
    assert "or give --no-check to write it all the same." in error
    assert not (folder / "out.onnx").exists()


def test_what_no_few_ops_mend_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["large.onnx", "-o", "out.onnx", "--data", "large.npz"]
    monkeypatch.setattr("mpcompile.commands.onnx_rewrite.keep_few", lambda *_: None)
    assert exit_code(arguments) == 1
    error = capsys.readouterr().err
    assert "made by first (MatMul)" in error or "made by second (MatMul)" in error
    assert "no few ops in FP32 were found that mend it" in error
    assert not (folder / "out.onnx").exists()


def test_what_is_16_bits_already_stays_and_passes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["flow.onnx", "-o", "out.onnx"]) == 0
    capsys.readouterr()
    assert exit_code(["out.onnx", "-o", "again.onnx", "--json", "-"]) == 0
    document = said(capsys)
    assert not document["changed"]
    assert set(document["errors"].values()) == {0.0}


def test_weights_in_a_file_of_their_own_stay_in_one(folder: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    text = "g (float[4,64] x) => (float[4,64] y) <float[64,64] w> { y = MatMul (x, w) }"
    model = parsed(text)
    model.graph.initializer.append(weight)
    del model.graph.value_info[:]
    onnx.save(model, "apart.onnx", save_as_external_data=True, location="apart.bin")
    assert (folder / "apart.bin").stat().st_size == 4 * 64 * 64
    assert exit_code(["apart.onnx", "-o", "narrow.onnx"]) == 0
    assert (folder / "narrow.onnx.data").stat().st_size == 2 * 64 * 64
    assert onnx.load("narrow.onnx").graph.initializer[0].data_type == onnx.TensorProto.FLOAT16


UNKNOWN = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) {
   a = MatMul (x, v)
   b = custom.Own (a)
   y = MatMul (b, v)
}"""
NOT_FINITE = """g (float[4,8] x, float[8,8] v) => (float[4,8] y) <float least = {-1}> {
   a = MatMul (x, v)
   s = Abs (a)
   n = Mul (s, least)
   r = Sqrt (n)
   y = MatMul (r, v)
}"""
PICKY = """g (float[N,T,8] x, float[8,8] v) => (float[N,P,8] y) <int64[2] shape = {-1, 40}> {
   a = MatMul (x, v)
   r = Reshape (a, shape)
   s = Relu (r)
   t = Constant <value_ints = [1, -1, 8]> ()
   b = Reshape (s, t)
   y = MatMul (b, v)
}"""


@pytest.mark.parametrize(
    ("text", "why"),
    [(UNKNOWN, "ONNX Runtime refuses the model"), (NOT_FINITE, "it gives no finite number")],
)
def test_what_cannot_be_compared_is_not_written(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    onnx.save(parsed(text), "unproven.onnx")
    assert exit_code(["unproven.onnx", "-o", "out.onnx"]) == 1
    error = capsys.readouterr().err
    assert "the rewritten model was not compared with the original: " in error
    assert why in error
    assert error.splitlines()[-1].endswith("--no-check to write the rewritten model all the same.")
    assert not (folder / "out.onnx").exists()
    assert exit_code(["unproven.onnx", "-o", "out.onnx", "--no-check"]) == 0
    assert (folder / "out.onnx").exists()


def test_sizes_are_tried_until_the_model_takes_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(parsed(PICKY), "picky.onnx")  # 8 N T must be a multiple of 40
    assert exit_code(["picky.onnx", "-o", "out.onnx", "--json", "-"]) == 0
    assert said(capsys)["not_compared"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["none.onnx"],
        ["flow.onnx", "-o", "flow.onnx", "--force"],
        ["flow.onnx", "--data", "none.npz"],
        ["flow.onnx", "--data", "large.npz"],
        ["flow.onnx", "--plan", "none.json"],
        ["flow.onnx", "--full", "op:"],
        ["calibrate", "flow.onnx"],
        ["calibrate", "model.py", "--data", "small.npz"],
        ["model.py", "--target", "cuda"],
    ],
)
def test_wrong_arguments_are_one_sentence(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.py").write_text("")
    before = sorted(folder.iterdir())
    assert exit_code(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_bf16_says_where_it_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["flow.onnx", "--precision", "bf16"]) == 0
    assert "choose the target cuda" in capsys.readouterr().out
    arguments = ["flow.onnx", "--precision", "bf16", "--target", "cuda", "--json", "-"]
    assert exit_code([*arguments, "-o", "b.onnx"]) == 0
    document = said(capsys)
    assert document["changed"]
    assert document["not_compared"]  # no CPU runs it


def test_calibration_measures_weights_and_what_is_between() -> None:
    model = parsed(OVERFLOWS)
    x, v = np.full((4, 8), 2.0, np.float32), np.eye(8, dtype=np.float32)
    found = calibrate(model, [{"x": x, "v": v}, {"x": 3 * x, "v": v}])
    assert found.batches == 2
    assert found.values["a"].largest == found.values["b"].largest == 6.0
    assert found.values["y"].largest == pytest.approx(1.0, abs=1e-4)
    assert found.values["v"].count == 128


def test_the_first_tensor_that_differs_is_named() -> None:
    model = parsed(OVERFLOWS)
    batch = {"x": np.full((4, 8), 300.0, np.float32), "v": np.full((8, 8), 10.0, np.float32)}
    found = compare(ir.from_proto(model), rewrite(model), [batch])
    # y is 1 both ways: an infinite tanh is no error, so nothing is to be said of the rest
    assert found.passed
    assert found.first is None
    assert not found.made_up


def test_errors_are_shares_of_the_largest_magnitude() -> None:
    one = np.array([1.0, -4.0, np.inf], np.float32)
    assert error_between(one, np.array([1.0, -3.0, np.inf], np.float32)) == 0.25
    assert error_between(one, np.array([1.0, -4.0, 5.0], np.float32)) == np.inf
    assert error_between(one, np.array([1.0, np.nan, np.inf], np.float32)) == np.inf
    assert error_between(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert error_between(np.zeros(2, np.float32), np.zeros(3, np.float32)) == np.inf


def test_sequences_and_optionals_are_compared_element_by_element() -> None:
    one, other = np.array([1.0, -4.0], np.float32), np.array([1.0, -3.0], np.float32)
    assert error_between([one, one], [one, other]) == 0.25
    assert error_between([], []) == 0.0
    assert error_between([one], [one, one]) == np.inf
    assert error_between(None, None) == 0.0
    assert error_between(None, one) == np.inf
    model = parsed("""g (float[4,8] x, float[8,8] v) => (seq(float[4,8]) s) {
       a = MatMul (x, v)
       b = Relu (a)
       s = SequenceConstruct (a, b)
    }""")
    found = compare(ir.from_proto(model), rewrite(model))
    assert found.passed
    assert 0 < found.worst.error < 2**-6


def test_narrow_inputs_are_compared_and_may_overflow(folder: Path) -> None:
    arguments = ["flow.onnx", "-o", "out.onnx", "--free-io", "--data", "small.npz"]
    assert exit_code(arguments) == 0
    model = parsed(OVERFLOWS)
    narrow = rewrite(model, keep_io=False)
    x, v = np.full((4, 8), 1e5, np.float32), np.eye(8, dtype=np.float32)
    assert compare(ir.from_proto(model), narrow, [{"x": x / 100, "v": v}]).passed
    assert not compare(ir.from_proto(model), narrow, [{"x": x, "v": v * 1e-5}]).passed


def test_casts_in_inner_graphs_count() -> None:
    text = """g (float[4] x, float16[4] h, bool k) => (float[4] y) {
       a = Cast <to = 10> (x)
       i = Cast <to = 6> (x)
       y = If (k) <
         then_branch = one () => (float[4] b) { b = Cast <to = 1> (a) },
         else_branch = two () => (float[4] d) { d = Cast <to = 1> (h) }
       >
    }"""
    assert casts_of(parsed(text).graph) == {"f16 to f32": 2, "f32 to f16": 1}
