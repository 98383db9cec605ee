"""plan.json: written, read, edited, refused and compared."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs.graphs import linear, tied
from programs.random_plans import choosers, dataflows, half_of
from programs.small_plan import FLOW, PLAN, edited

import mpcompile
from mpcompile import BadInput, LossScale, Plan, Policy, Precision
from mpcompile.pipeline import transform
from mpcompile.plan.dataflow import Dataflow
from mpcompile.plan.fingerprint import graph_of
from mpcompile.plan.footprint import cost, footprints
from mpcompile.plan.given import decide
from mpcompile.plan.plan import read_plan, schema
from mpcompile.plan.planner import make_plan
from mpcompile.plan.rule import Wish
from mpcompile.program.graph_text import graph_text
from mpcompile.step.transformed import Choices


def stored(plan: Plan) -> dict[str, str]:
    return {d.op: d.stores.short for d in plan.decisions}


def test_the_file_says_its_version_and_what_graph_it_is_for() -> None:
    document = json.loads(PLAN.to_json())
    assert document["version"] == 2
    assert document["fingerprint"] == graph_of(FLOW).fingerprint
    assert document["graph"]["ops"]["gelu"] == {
        "kind": "gelu",
        "reads": ["linear"],
        "writes": ["gelu"],
    }
    assert Plan.from_json(PLAN.to_json()) == PLAN


@settings(max_examples=150, deadline=None)
@given(dataflows(), st.sampled_from([Precision.FP16, Precision.BF16]))
def test_a_plan_applied_unedited_is_itself(flow: Dataflow, precision: Precision) -> None:
    plan = decide(flow, precision)
    again = decide(flow, Precision.FP16, Plan.from_json(plan.to_json()))
    assert again == plan


@settings(max_examples=100, deadline=None)
@given(dataflows(), choosers)
def test_an_edited_plan_is_followed_and_its_casts_are_made_anew(
    flow: Dataflow, chooser: random.Random
) -> None:
    plan = decide(flow, Precision.FP16)
    if plan.precision is Precision.FP32:
        return
    decisions = tuple(
        replace(d, stores=chooser.choice([Precision.FP16, Precision.FP32])) for d in plan.decisions
    )
    # Nothing of these may be believed.
    lies = replace(plan, decisions=decisions, storage={}, casts=plan.casts[:1], cost=7)
    found = decide(flow, Precision.BF16, lies)
    wanted = frozenset(d.op for d in decisions if d.stores is Precision.FP16)
    assert half_of(found) == wanted
    # The ops without results, which no decision names, are decided as is best.
    inside = {d.op for d in found.decisions if d.computes is not d.stores}
    pinned = Dataflow(
        tuple(
            replace(op, inside=op.inside and (op.id not in wanted or op.id in inside))
            for op in flow.ops
        ),
        flow.tensors,
    )
    silent = [op for op in flow.ops if not op.writes]
    free = [op.id for op in silent if op.wish is Wish.FREE]
    base = wanted | {op.id for op in silent if op.wish is Wish.HALF}
    if not base:
        return
    assert found.cost == min(
        cost(footprints(pinned), base | set(chosen)).bytes
        for count in range(len(free) + 1)
        for chosen in itertools.combinations(free, count)
    )


def test_an_op_moved_to_fp32_gets_its_casts_and_a_true_reason() -> None:
    found = decide(FLOW, Precision.FP16, edited(PLAN, gelu="float32"))
    assert stored(PLAN)["gelu"] == "f16"
    assert stored(found) == {**stored(PLAN), "gelu": "f32"}
    assert found.decision("gelu").reason.startswith(
        "set in the plan; the policy alone stores f16: either"
    )
    assert found.decision("gelu").computes is Precision.FP32
    assert [cast.id for cast in found.casts if cast.tensor == "linear"] == ["linear.f32"]
    assert found.casts != PLAN.casts


def test_an_op_inside_stays_so_unless_the_plan_computes_in_16_bits() -> None:
    assert PLAN.decision("softmax").computes is Precision.FP32
    document = json.loads(PLAN.to_json())
    for row in document["decisions"]:
        if row["op"] == "softmax":
            row["computes"] = "float16"
    found = decide(FLOW, Precision.FP16, Plan.from_json(json.dumps(document)))
    assert found.decision("softmax").computes is Precision.FP16
    assert decide(FLOW, Precision.FP16, found) == found
    # Whatever the policy in force would have made of it.
    narrow = replace(FLOW.ops[2], wish=Wish.HALF, inside=False, reason="half")
    other = Dataflow((*FLOW.ops[:2], narrow, *FLOW.ops[3:]), FLOW.tensors)
    assert decide(other, Precision.FP16, PLAN) == PLAN


def test_ops_that_a_plan_leaves_out_are_the_policys() -> None:
    few = replace(edited(PLAN, gelu="float32"), decisions=())
    assert decide(FLOW, Precision.FP16, few) == PLAN


def test_the_order_of_the_rows_does_not_count_but_everything_else_does() -> None:
    print_of = graph_of(FLOW).fingerprint
    assert graph_of(Dataflow(FLOW.ops[::-1], FLOW.tensors[::-1])).fingerprint == print_of
    others = (
        Dataflow(FLOW.ops[1:], FLOW.tensors),
        Dataflow((replace(FLOW.ops[0], kind="mm"), *FLOW.ops[1:]), FLOW.tensors),
        Dataflow((replace(FLOW.ops[0], reads=("x", "w")), *FLOW.ops[1:]), FLOW.tensors),
        Dataflow((replace(FLOW.ops[0], id="a"), *FLOW.ops[1:]), FLOW.tensors),
        Dataflow(FLOW.ops, (replace(FLOW.tensors[0], elements=65), *FLOW.tensors[1:])),
    )
    assert len({graph_of(flow).fingerprint for flow in others} | {print_of}) == 6
    same = Dataflow((replace(FLOW.ops[0], wish=Wish.FULL, reason="x"), *FLOW.ops[1:]), FLOW.tensors)
    assert graph_of(same).fingerprint == print_of


@pytest.mark.parametrize(
    ("flow", "sentence"),
    [
        (
            Dataflow(FLOW.ops[:-1], FLOW.tensors),
            "the plan: the plan belongs to another graph: only in the plan: best (argmax); "
            "make a plan from this program.",
        ),
        (
            Dataflow((*FLOW.ops, replace(FLOW.ops[-1], id="more")), FLOW.tensors),
            "only in this program: more (argmax);",
        ),
        (
            Dataflow((replace(FLOW.ops[0], kind="mm"), *FLOW.ops[1:]), FLOW.tensors),
            "another op: linear is linear in the plan and mm in this program;",
        ),
        (
            Dataflow((replace(FLOW.ops[0], reads=("x",)), *FLOW.ops[1:]), FLOW.tensors),
            "other inputs: linear reads w, x in the plan and x in this program;",
        ),
        (
            Dataflow(FLOW.ops, (replace(FLOW.tensors[0], elements=1024), *FLOW.tensors[1:])),
            "another size: w holds 64 numbers in the plan and 1,024 in this program;",
        ),
    ],
)
def test_a_plan_of_another_graph_is_refused_and_says_what_differs(
    flow: Dataflow, sentence: str
) -> None:
    with pytest.raises(BadInput) as caught:
        decide(flow, Precision.FP16, PLAN)
    assert sentence in str(caught.value)


def test_many_differences_are_counted() -> None:
    with pytest.raises(BadInput, match=r"only in the plan: .*, .*, .* and 3 more"):
        decide(Dataflow((), FLOW.tensors), Precision.FP16, PLAN)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: edited(p, gelu="bfloat16"), "gelu stores bfloat16, but the plan's precision is"),
        (lambda p: edited(p, made="float16"), "made stores float16, but it is made in FP32"),
        (lambda p: replace(p, precision=Precision.FP32), "linear stores float16, but the plan's"),
        (lambda p: replace(p, decisions=p.decisions * 2), "decides twice about 'gelu'"),
        (
            lambda p: replace(p, decisions=(replace(p.decisions[0], op="best"),)),
            "decides about 'best', which makes no FP32 tensor",
        ),
        (
            lambda p: replace(p, decisions=(replace(p.decisions[0], op="nowhere"),)),
            "'nowhere'",
        ),
    ],
)
def test_decisions_that_cannot_be_are_refused(
    change: Callable[[Plan], Plan], sentence: str
) -> None:
    with pytest.raises(BadInput) as caught:
        decide(FLOW, Precision.FP16, change(PLAN))
    assert sentence in str(caught.value)


def test_a_plan_edited_to_what_an_override_decides_is_the_plan_of_that_override() -> None:
    plan = transform(tied()).plan
    by_policy = transform(tied(), Choices(policy=Policy(full=("node:mul",))))
    wanted = {d.op: d.stores.value for d in by_policy.plan.decisions}
    assert (stored(plan)["mul"], wanted["mul"]) == ("f16", "float32")
    by_plan = transform(tied(), Choices(plan=edited(plan, **wanted)))
    for field in ("precision", "storage", "casts", "cost", "graph"):
        assert getattr(by_plan.plan, field) == getattr(by_policy.plan, field)
    assert graph_text(by_plan.forward.module.graph) == graph_text(by_policy.forward.module.graph)
    assert by_plan.plan.casts != plan.casts


def test_every_op_of_a_program_may_be_stored_and_computed_either_way() -> None:
    plan = transform(tied()).plan
    choices = itertools.product(
        [d.op for d in plan.decisions], ["float16", "float32"], ["float16", "float32"]
    )
    for op, stores, computes in choices:
        document = json.loads(plan.to_json())
        for row in document["decisions"]:
            if row["op"] == op:
                row.update(stores=stores, computes=computes)
        workload = tied()
        assert workload.loss and workload.optimizer
        step = mpcompile.compile(
            workload.model,
            workload.loss,
            workload.optimizer,
            workload.batch,
            plan=Plan.from_json(json.dumps(document)),
            loss_scale=LossScale.static(64.0),
        )
        assert step.plan.decision(op).stores.value == stores
        assert torch.isfinite(step(*workload.batch))
        assert step.skipped == 0


def test_compile_and_rewrite_take_a_plan() -> None:
    workload = linear()
    assert workload.loss and workload.optimizer
    plan = transform(workload, Choices(policy=Policy(precision=Precision.BF16))).plan
    step = mpcompile.compile(
        workload.model, workload.loss, workload.optimizer, workload.batch, plan=plan
    )
    assert step.plan == plan
    assert step.loss_scale == LossScale.none().initial
    assert torch.isfinite(step(*workload.batch))
    full = edited(plan, **{d.op: "float32" for d in plan.decisions})
    program = torch.export.export(workload.model, workload.batch[:1])
    with pytest.raises(BadInput, match="the plan belongs to another graph"):
        mpcompile.rewrite(program, plan=full)


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **fields})


DECISION = json.loads(PLAN.to_json())["decisions"][0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "this is not JSON (EOF while parsing"),
        ("[]", "the document should be an object, not []"),
        ("null", "the document should be an object"),
        ("{", "this is not JSON"),
        ("[" * 100_000, "this is not JSON (recursion limit exceeded"),
        (b"\xff\xfe", "this is not JSON"),
        ("\ud800", "unable to parse raw data as a unicode string"),
        ('{"version": 1}', "this plan has version 1, but this mpcompile reads version 2; write"),
        ('{"version": "2"}', "this plan has version '2'"),
        ('{"version": ' + "9" * 5000 + "}", "number out of range"),
        ("{}", "precision is missing"),
        (changed(extra=1), "there is no field extra"),
        (changed(cost=-1), "cost should be greater than or equal to 0, not -1"),
        (changed(cost=float("nan")), "cost should be a valid integer, not nan"),
        (changed(cost="7"), "cost should be a valid integer, not '7'"),
        (changed(precision="fp8"), "precision should be 'float16', 'bfloat16' or 'float32', not"),
        (changed(decisions=[DECISION, {**DECISION, "stores": "f"}]), "decisions[1].stores should"),
        (changed(decisions=[{**DECISION, "line": 3}]), "there is no field decisions[0].line"),
        (changed(decisions=[{**DECISION, "where": None}]), "decisions[0].where should be"),
        (changed(decisions={"a": 1}), "decisions should be a list"),
        (changed(storage={"x": ["float64"]}), "storage.x[0] should be 'float16'"),
        (changed(graph={"ops": {}, "elements": {"x": True}}), "graph.elements.x should be a valid"),
        (changed(graph={"ops": {}, "elements": {}}), "the fingerprint does not match the plan's"),
        (changed(fingerprint="0"), "the fingerprint does not match the plan's own graph"),
    ],
)
def test_what_is_not_a_plan_is_refused_in_one_sentence(text: str | bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        Plan.from_json(text, "some.json")
    said = str(caught.value)
    assert said.startswith("some.json: ")
    assert sentence in said
    assert len(said) < 400
    assert "\n" not in said


def leaves(document: Any) -> list[tuple[Any, Any]]:
    """Every place of a document that holds something."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, value in list(items):
        found.append((document, key))
        if isinstance(value, dict | list):
            found += leaves(value)
    return found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_plan_is_a_plan_or_bad_input(data: st.DataObject) -> None:
    document = json.loads(PLAN.to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        place, key = data.draw(st.sampled_from(leaves(document)))
        place[key] = data.draw(JSON | st.sampled_from(["float16", "float32", "gelu", "best", ""]))
    if data.draw(st.booleans()) and isinstance(document.get("graph"), dict):
        document["graph"] = json.loads(PLAN.to_json())["graph"]
        document["fingerprint"] = PLAN.graph.fingerprint
    try:
        found = decide(FLOW, Precision.FP16, Plan.from_json(json.dumps(document)))
    except BadInput:
        return
    known = {op.id for op in FLOW.ops} | {"output"}
    assert {reader for cast in found.casts for reader in cast.readers} <= known


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such file"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(BadInput, match="there is no such file"):
        read_plan(tmp_path)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 29)
    with pytest.raises(BadInput, match="the file has 536,870,912 bytes, which is too large"):
        read_plan(huge)
    huge.write_text(PLAN.to_json())
    assert read_plan(huge) == PLAN


def test_the_schema_knows_every_field_and_allows_no_other() -> None:
    document = schema()
    assert set(document["properties"]) == set(json.loads(PLAN.to_json()))
    assert document["properties"]["version"]["const"] == 2
    shapes = [document, *document["$defs"].values()]
    objects = [shape for shape in shapes if shape["type"] == "object"]
    assert len(objects) == 6
    assert all(shape["additionalProperties"] is False for shape in objects)


def test_make_plan_alone_says_nothing_about_the_graph() -> None:
    assert make_plan(FLOW, Precision.FP16).graph.ops == {}
    assert replace(PLAN, graph=make_plan(FLOW, Precision.FP16).graph) == make_plan(
        FLOW, Precision.FP16
    )
