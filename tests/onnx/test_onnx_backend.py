"""A part of the campaign over the models with which the onnx package tests runtimes."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest

from bench.onnx import backend as onnx_backend
from bench.onnx import weak_points as onnx_weak_points
from bench.onnx.cases import case_of
from bench.onnx.tools import TOOLS
from bench.onnx.verdict import GOOD, Baseline, Outcome, Runner, baseline_of, judge

EXCEPTIONS: dict[str, str] = {}
"""Tool and case of each known fault, with the reason; the whole campaign has none."""

SOUND = Baseline(checks=True, infers=True, runner=Runner.RUNTIME, why="")
MODEL = '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) '
ONES = np.ones(4, np.float32)


def outcome(body: str, border: str = "") -> Outcome:
    """Judge a model as if a tool had made it from ``y = x + 1``."""
    before = onnx.parser.parse_model(f"{MODEL} <float one = {{1}}> {{ y = Add(x, one) }}")
    text = MODEL.replace("(float[4] y)", border or "(float[4] y)")
    after = onnx.parser.parse_model(f"{text} <float one = {{1}}, int64 k = {{0}}> {{ {body} }}")
    return judge(before, after, [([ONES], [ONES + ONES])], SOUND).outcome


def test_a_verdict_names_the_fault() -> None:
    assert outcome("y = Add(x, one)") is Outcome.UNCHANGED
    assert outcome("h = Cast<to = 10>(x) f = Cast<to = 1>(h) y = Add(f, one)") is Outcome.PASSED
    assert outcome("y = Sub(x, one)") is Outcome.WRONG_VALUES
    assert outcome("y = Add(x, k)") is Outcome.INVALID
    assert outcome("y = Add(z, one)") is Outcome.INVALID
    narrow = "h = Cast<to = 10>(x) g = Cast<to = 10>(one) y = Add(h, g)"
    assert outcome(narrow, "(float16[4] y)") is Outcome.WRONG_DTYPE
    # Valid, but no kernel of the runtime takes BF16.
    wide = "h = Cast<to = 16>(x) g = Cast<to = 16>(one) s = Add(h, g) y = Cast<to = 1>(s)"
    assert outcome(wide) is Outcome.LOADS_NOT


@pytest.mark.parametrize(
    ("scale", "found"), [(1.01, Outcome.UNCHANGED), (1.02, Outcome.WRONG_VALUES)]
)
def test_the_tolerance_is_relative_to_the_largest_number(scale: float, found: Outcome) -> None:
    model = onnx.parser.parse_model(f"{MODEL} {{ y = Identity(x) }}")
    x = np.array([1e-6, 1, 10, 1e4 * scale], np.float32)
    right = np.array([0, 1, 10, 1e4], np.float32)
    assert judge(model, model, [([x], [right])], SOUND).outcome is found


def test_checks_that_a_model_fails_are_not_applied_to_its_rewrite() -> None:
    case = case_of("node/test_swish")
    unable = Baseline(checks=True, infers=True, runner=Runner.NONE, why="no kernel")
    assert baseline_of(case.model, case.sets).runner is Runner.RUNTIME
    missing = case_of("pytorch-converted/test_Linear")  # of op set 6, for which there is no kernel
    assert baseline_of(missing.model, missing.sets).runner is Runner.REFERENCE
    right = TOOLS["ours, forced"](case.model)
    wrong = [(case.sets[0][0], [case.sets[0][1][0] + 1])]
    assert judge(case.model, right, wrong, SOUND).outcome is Outcome.WRONG_VALUES
    assert judge(case.model, right, wrong, unable).outcome is Outcome.VALID


def test_a_sample_of_the_packages_models_is_rewritten_correctly() -> None:
    cases = random.Random(1).sample(onnx_backend.names(), 150)
    cases = [name for name in cases if not name.startswith("light/")]
    tools = ("ours", "ours, forced")
    _, verdicts = onnx_backend.campaign(cases, tools)
    bad = {
        f"{tool}: {case}": verdict.why
        for tool, found in verdicts.items()
        for case, verdict in found.items()
        if verdict.outcome not in GOOD
    }
    assert {name: why for name, why in bad.items() if name not in EXCEPTIONS} == {}
    passed = [v for v in verdicts["ours, forced"].values() if v.outcome is Outcome.PASSED]
    assert len(passed) > len(cases) / 2  # else the test would prove nothing


def test_models_that_break_converters_do_not_break_ours() -> None:
    _, verdicts = onnx_backend.campaign(onnx_weak_points.names(), ("ours",))
    outcomes = {case: (v.outcome, v.why) for case, v in verdicts["ours"].items()}
    assert outcomes == dict.fromkeys(outcomes, (Outcome.PASSED, ""))
