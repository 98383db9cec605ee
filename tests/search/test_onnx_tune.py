"""The few ops of an ONNX graph that must stay FP32, found by trials."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from programs.onnx_models import parsed

from mpcompile import CheckFailed, Policy
from mpcompile.onnx.comparison import compare
from mpcompile.onnx.rewrite import rewrite
from mpcompile.search.onnx_tune import OnnxSearch, keep_few, narrow_ops, tune_onnx

ONE_IS_LARGE = """g (float[4,64] x, float[64,64] v) => (float[4,64] y) <float[1] most = {32768.0}> {
   [first] a = MatMul (x, v)
   [bounded] b = Tanh (a)
   [large] c = MatMul (b, x2)
   [tamed] d = Div (c, most)
   [last] y = MatMul (d, v)
}""".replace("float[64,64] v)", "float[64,64] v, float[64,64] x2)")
INSIDE = """g (float[4,64] x, float[64,64] v, float[64,64] w, bool k) => (float[4,64] y)
  <float[1] most = {32768.0}> {
   [first] a = MatMul (x, v)
   [choice] y = If (k) <
     then_branch = t () => (float[4,64] b) {
       [large] c = MatMul (a, w)
       [tamed] s = Div (c, most)
       [again] b = MatMul (s, v)
     },
     else_branch = e () => (float[4,64] f) { [other] f = MatMul (a, v) }
   >
}"""


def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 64)).astype(np.float32)
    v = rng.normal(size=(64, 64)).astype(np.float32) / 8
    large = 60_000 * (1 + rng.random((64, 64))).astype(np.float32) / 2
    return [{"x": each, "v": v, "x2": large, "w": large, "k": np.array(True)} for each in x]


@pytest.mark.parametrize("text", [ONE_IS_LARGE, INSIDE])
def test_the_ops_with_large_numbers_are_kept_and_others_are_not(text: str) -> None:
    model = ir.from_proto(parsed(text))
    names = {str(value.name) for value in model.graph.inputs}
    given = [{k: v for k, v in batch.items() if k in names} for batch in batches()]
    assert not compare(model, rewrite(model), given).passed
    tuned = tune_onnx(model, given)
    assert tuned.comparison.passed
    assert [op.rpartition("/")[2] for op in tuned.kept] == ["large", "tamed"]
    assert tuned.before > tuned.after > 0
    assert set(tuned.kept).isdisjoint(narrow_ops(tuned.rewritten))
    assert tuned.kept[0] in str(tuned)
    # The same result by hand: the override that is named.
    policy = Policy(full=tuple(f"node:{op}" for op in tuned.kept))
    again = rewrite(model, policy)
    assert again.plan == tuned.rewritten.plan
    assert compare(model, again, given).passed
    assert tune_onnx(model, given, policy).kept == ()


def test_a_model_that_passes_is_not_searched() -> None:
    tuned = tune_onnx(parsed(ONE_IS_LARGE))
    assert tuned.kept == ()
    assert tuned.trials == 0
    assert tuned.comparison.passed


def test_trials_and_time_are_bounded() -> None:
    model, given = ir.from_proto(parsed(ONE_IS_LARGE)), batches()
    given = [{k: v for k, v in batch.items() if k not in ("w", "k")} for batch in given]
    search = OnnxSearch(model, batches=given)
    rewritten = search.rewritten()
    assert keep_few(replace(search, seconds=0.0), rewritten) is None
    few = keep_few(replace(search, trials=6), rewritten)
    assert few is None or few.trials <= 6
    with pytest.raises(CheckFailed, match="no few ops in FP32 were found"):
        tune_onnx(model, given, seconds=0.0)


def test_a_graph_that_cannot_have_switches_is_refused_as_before() -> None:
    text = '<ir_version: 4, opset_import: ["" : 8]> '
    model = ir.from_proto(parsed(ONE_IS_LARGE, text))
    given = [{k: v for k, v in batch.items() if k not in ("w", "k")} for batch in batches()]
    search = OnnxSearch(model, batches=given)
    assert keep_few(search, search.rewritten()) is None
