"""What changed between two plans, in words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from expecttest import assert_expected_inline
from hypothesis import given, settings
from programs.random_plans import dataflows
from programs.small_plan import FLOW, PLAN, edited

from mpcompile import Plan, Precision
from mpcompile.artifacts import write_json
from mpcompile.plan.dataflow import Dataflow, Where
from mpcompile.plan.diff import in_words, plan_diff
from mpcompile.plan.given import decide


def words(old: Plan, new: Plan) -> str:
    return "\n".join(in_words(plan_diff(old, new, "a.json", "b.json")))


def test_an_op_that_was_moved() -> None:
    moved = decide(FLOW, Precision.FP16, edited(PLAN, gelu="float32"))
    assert_expected_inline(
        words(PLAN, moved),
        """\
gelu: f16 -> f32, because set in the plan; the policy alone stores f16: either; stored in f16: no choice writes fewer bytes
cast removed: gelu to f32, 32 numbers, for softmax (read by arithmetic in FP32)
cast added: linear to f32, 32 numbers, for gelu (read by arithmetic in FP32)
bytes written: 640 as before
bytes of casts, if none is fused: 1,152 as before""",
    )


def test_casts_with_other_readers() -> None:
    softer = decide(FLOW, Precision.FP16, edited(PLAN, softmax="float32"))
    other = decide(FLOW, Precision.FP16, edited(PLAN, linear="float32", gelu="float32"))
    assert_expected_inline(
        words(PLAN, softer),
        """\
softmax: f16 -> f32, because set in the plan; the policy alone stores f16: sum; stored in f16: no choice writes fewer bytes
bytes written: 640 as before
bytes of casts, if none is fused: 1,152 as before""",
    )
    assert_expected_inline(
        words(PLAN, other),
        """\
linear: f16 -> f32, because set in the plan; the policy alone stores f16: fast
gelu: f16 -> f32, because set in the plan; the policy alone stores f16: either; stored in f16: no choice writes fewer bytes
cast removed: x to f16, 32 numbers, for linear (a batch, read in 16 bits)
cast removed: gelu to f32, 32 numbers, for softmax (read by arithmetic in FP32)
cast w to f16: no longer for linear
bytes written: 640 as before
bytes of casts, if none is fused: 1,152 -> 768 (-33.3%)""",
    )


def test_another_precision() -> None:
    assert_expected_inline(
        words(PLAN, decide(FLOW, Precision.BF16)),
        """\
precision: f16 -> bf16
linear: f16 -> bf16, because fast
gelu: f16 -> bf16, because either; stored in bf16: no choice writes fewer bytes (before: either; stored in f16: no choice writes fewer bytes)
softmax: f16 -> bf16, because sum; stored in bf16: no choice writes fewer bytes (before: sum; stored in f16: no choice writes fewer bytes)
last: f16 -> bf16, because fast
cast removed: w to f16, 64 numbers, for linear, last (a parameter, read in 16 bits)
cast removed: x to f16, 32 numbers, for linear (a batch, read in 16 bits)
cast removed: softmax to f16, 32 numbers, for last (stored in 16 bits, computed in FP32)
cast added: w to bf16, 64 numbers, for linear, last (a parameter, read in 16 bits)
cast added: x to bf16, 32 numbers, for linear (a batch, read in 16 bits)
cast added: softmax to bf16, 32 numbers, for last (stored in 16 bits, computed in FP32)
bytes written: 640 as before
bytes of casts, if none is fused: 1,152 as before""",
    )


def test_what_an_op_inside_computes_in() -> None:
    document = json.loads(PLAN.to_json())
    for row in document["decisions"]:
        if row["op"] == "softmax":
            row["computes"] = "float16"
    other = decide(FLOW, Precision.FP16, Plan.from_json(json.dumps(document)))
    assert_expected_inline(
        words(PLAN, other),
        """\
softmax: computed in f32, stored in f16 -> f16, because sum; stored in f16: no choice writes fewer bytes
cast removed: gelu to f32, 32 numbers, for softmax (read by arithmetic in FP32)
cast removed: softmax to f16, 32 numbers, for last (stored in 16 bits, computed in FP32)
bytes written: 640 as before
bytes of casts, if none is fused: 1,152 -> 768 (-33.3%)""",
    )


def test_another_graph() -> None:
    tensors = (replace(FLOW.tensors[0], elements=128), *FLOW.tensors[1:])
    ops = (replace(FLOW.ops[0], kind="mm"), *FLOW.ops[1:3], *FLOW.ops[4:])
    other = decide(Dataflow(ops, tensors), Precision.FP16)
    assert_expected_inline(
        words(PLAN, other),
        """\
graph: only in a.json: made (zeros)
graph: another op: linear is linear in a.json and mm in b.json
graph: another size: w holds 64 numbers in a.json and 128 in b.json
linear: linear f16 -> mm f16, because fast
made: no longer decided
bytes written: 640 as before
bytes of casts, if none is fused: 1,152 -> 1,536 (+33.3%)""",
    )
    assert_expected_inline(
        words(other, PLAN).splitlines()[0], """graph: only in b.json: made (zeros)"""
    )


def test_reasons_and_source_lines_alone_are_no_difference() -> None:
    decisions = tuple(replace(d, reason="x", where=Where("m", "f.py", 3)) for d in PLAN.decisions)
    moved = replace(PLAN, decisions=decisions)
    assert moved != PLAN
    assert words(PLAN, moved) == "the plans are the same"


def test_the_document_holds_what_the_words_say(capsys: pytest.CaptureFixture[str]) -> None:
    moved = decide(FLOW, Precision.FP16, edited(PLAN, gelu="float32"))
    write_json("-", plan_diff(PLAN, moved).to_dict())
    document = json.loads(capsys.readouterr().out)
    assert document["same"] is False
    assert document["decisions"][0]["op"] == "gelu"
    assert document["decisions"][0]["old"]["stores"] == "float16"
    assert document["decisions"][0]["new"]["stores"] == "float32"
    assert document["cost"] == [PLAN.cost, moved.cost]


@settings(max_examples=100, deadline=None)
@given(dataflows(), dataflows())
def test_only_a_plan_that_does_the_same_is_the_same(one: Dataflow, two: Dataflow) -> None:
    first, second = decide(one, Precision.FP16), decide(two, Precision.FP16)
    assert plan_diff(first, first).same
    assert in_words(plan_diff(first, second))
    # The graph, what is decided and the casts: nothing else makes a plan.
    assert plan_diff(first, second).same == (
        replace(first, cost=0, storage={}) == replace(second, cost=0, storage={})
    )
