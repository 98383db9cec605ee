"""The minimum cut against brute force, and what holds for every plan."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from programs.random_flow import best, least, random_flow
from programs.random_plans import choosers, dataflows, half_of

from mpcompile.errors import BadInput
from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor
from mpcompile.plan.footprint import Cost, cost, footprints, is_neutral, reads_wide
from mpcompile.plan.plan import Plan
from mpcompile.plan.planner import cheapest, make_plan, network_of
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision


def test_2000_plans_cost_what_the_best_of_all_assignments_costs() -> None:
    for seed in range(2000):
        flow = random_flow(random.Random(seed), free=14)
        assert best(flow) == least(flow), seed


@settings(max_examples=100, deadline=None)
@given(dataflows())
def test_the_plan_costs_what_the_best_of_all_assignments_costs(flow: Dataflow) -> None:
    assert best(flow) == least(flow)


@settings(max_examples=1000, deadline=None)
@given(dataflows())
def test_pinned_ops_get_their_wish(flow: Dataflow) -> None:
    plan = make_plan(flow, Precision.FP16)
    if plan.precision is Precision.FP32:
        return
    for op in flow.ops:
        if op.writes and op.wish is not Wish.FREE:
            assert (op.id in half_of(plan)) == (op.wish is Wish.HALF)


@settings(max_examples=1000, deadline=None)
@given(dataflows())
def test_every_reader_finds_the_precision_it_needs(flow: Dataflow) -> None:
    plan = make_plan(flow, Precision.FP16)
    if plan.precision is Precision.FP32:
        assert plan.casts == ()
        return
    half = half_of(plan) | {op.id for op in flow.ops if op.wish is Wish.HALF}
    writer = {tensor: op for op in flow.ops for tensor in op.writes}
    copies = {cast.id: cast for cast in plan.casts}
    for cast in plan.casts:
        assert cast.source == cast.tensor or copies[cast.source].tensor == cast.tensor
    for tensor in flow.tensors:
        made = writer.get(tensor.id)
        arrives = (
            Precision.FP16
            if made is not None and made.id in half and not made.inside
            else Precision.FP32
        )
        mine = [cast for cast in plan.casts if cast.tensor == tensor.id]
        assert len({cast.to for cast in mine}) == len(mine), "one cast a tensor and direction"
        for op in flow.ops:
            if tensor.id not in op.reads:
                continue
            reads = [cast.to for cast in mine if op.id in cast.readers] or [arrives]
            free_without_results = op.wish is Wish.FREE and not op.writes
            if is_neutral(op, tensor.id) or reads_wide(op, tensor.id):
                assert reads == [Precision.FP32]
            elif not free_without_results:
                assert reads == [Precision.FP16 if op.id in half else Precision.FP32]
        if tensor.output:
            outputs = [cast.to for cast in mine if "output" in cast.readers] or [arrives]
            assert outputs == [Precision.FP32]


@settings(max_examples=1000, deadline=None)
@given(dataflows(), choosers)
def test_the_order_of_the_rows_does_not_matter(flow: Dataflow, chooser: random.Random) -> None:
    ops, tensors = list(flow.ops), list(flow.tensors)
    chooser.shuffle(ops)
    chooser.shuffle(tensors)
    assert half_of(make_plan(flow, Precision.FP16)) == half_of(
        make_plan(Dataflow(tuple(ops), tuple(tensors)), Precision.FP16)
    )


@settings(max_examples=100, deadline=None)
@given(dataflows())
def test_a_plan_survives_json(flow: Dataflow) -> None:
    plan = make_plan(flow, Precision.BF16)
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=100, deadline=None)
@given(dataflows())
def test_without_a_tensor_core_op_nothing_changes(flow: Dataflow) -> None:
    calm = Dataflow(
        tuple(replace(op, wish=Wish.FREE) if op.wish is Wish.HALF else op for op in flow.ops),
        flow.tensors,
    )
    plan = make_plan(calm, Precision.FP16)
    assert plan.casts == ()
    assert all(decision.stores is Precision.FP32 for decision in plan.decisions)


def op(name: str, wish: Wish, reads: str, writes: str, inside: bool = False) -> Op:
    streams = wish is not Wish.HALF
    names = tuple(reads.split()), tuple(writes.split())
    return Op(name, "op", "rule", wish, inside, streams, "why", *names)


def test_a_free_op_between_two_matmuls_runs_in_16_bits() -> None:
    flow = Dataflow(
        (
            op("one", Wish.HALF, "x", "a"),
            op("relu", Wish.FREE, "a", "b"),
            op("two", Wish.HALF, "b", "c"),
        ),
        (
            Tensor("x", 8, fixed=Fixed.INPUT),
            Tensor("a", 8),
            Tensor("b", 8),
            Tensor("c", 8, output=True),
        ),
    )
    plan = make_plan(flow, Precision.FP16)
    assert half_of(plan) == {"one", "relu", "two"}
    assert [(cast.id, cast.readers) for cast in plan.casts] == [
        ("x.f16", ("one",)),
        ("c.f32", ("output",)),
    ]
    # x.f16 16, a 16, b 16, c 16, c.f32 32 bytes.
    assert plan.cost == 96


def test_a_free_chain_between_fp32_ops_stays_in_fp32() -> None:
    flow = Dataflow(
        (
            op("far", Wish.HALF, "x", "z"),
            op("exp", Wish.FULL, "x", "a"),
            op("mul", Wish.FREE, "a", "b"),
            op("log", Wish.FULL, "b", "c"),
        ),
        tuple(Tensor(name, 8, fixed=Fixed.INPUT if name == "x" else None) for name in "xzabc"),
    )
    assert half_of(make_plan(flow, Precision.FP16)) == {"far"}


def test_a_norm_between_matmuls_reads_and_writes_16_bits_and_computes_in_fp32() -> None:
    flow = Dataflow(
        (
            op("one", Wish.HALF, "x", "a"),
            op("norm", Wish.FREE, "a g", "b", inside=True),
            op("two", Wish.HALF, "b", "c"),
        ),
        (
            Tensor("x", 8, fixed=Fixed.INPUT),
            Tensor("g", 8, fixed=Fixed.PARAMETER),
            *(Tensor(name, 8) for name in "abc"),
        ),
    )
    plan = make_plan(flow, Precision.FP16)
    norm = plan.decision("norm")
    assert (norm.computes, norm.stores) == (Precision.FP32, Precision.FP16)
    assert [cast.id for cast in plan.casts] == ["x.f16", "a.f32", "b.f16"]


def test_the_example_of_the_documentation() -> None:
    flow = Dataflow(
        (
            replace(op("first", Wish.HALF, "x w", "a"), keeps=("x", "w")),
            replace(op("gelu", Wish.FREE, "a", "b"), keeps=("a",)),
            replace(op("exp", Wish.FULL, "b", "c", inside=True), keeps=("c",)),
            replace(op("mul", Wish.FREE, "b c", "d"), keeps=("b", "c")),
            replace(op("second", Wish.HALF, "d v", "e"), keeps=("d",)),
        ),
        tuple(
            Tensor(name, 1, Fixed.INPUT if name in "xwv" else None, output=name == "e")
            for name in "xwabcdve"
        ),
    )
    matmuls = frozenset(("first", "second"))
    assert cost(footprints(flow), matmuls) == Cost(42, 6)
    assert cost(footprints(flow), matmuls | {"gelu"}) == Cost(38, 6)
    assert cost(footprints(flow), matmuls | {"mul"}) == Cost(46, 7)
    assert cost(footprints(flow), matmuls | {"gelu", "mul"}) == Cost(36, 5)
    assert cheapest(flow, footprints(flow)) == {"first", "gelu", "mul", "second"}
    assert len(network_of(flow, footprints(flow))) == 4


def test_the_hash_seed_does_not_matter() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from programs.graphs import tied, forward_of\n"
        "from mpcompile.program.capture import capture\n"
        "from mpcompile.pipeline import describe\n"
        "from mpcompile.plan.planner import make_plan\n"
        "from mpcompile.plan.policy import Policy\n"
        "print(make_plan(describe(capture(tied()), Policy()), Policy().precision).to_json())\n"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert "decisions" in texts[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 1}', "null"])
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Plan.from_json(text)
