"""The rules that keep what must not be rounded, each on a small graph by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mpcompile import Level, Policy, Precision
from mpcompile.plan.compared import keep_compared
from mpcompile.plan.dataflow import Dataflow, Fixed, Op, Tensor
from mpcompile.plan.grams import keep_grams
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.origins import Origin, Origins
from mpcompile.plan.rule import Wish
from mpcompile.plan.sensitivity import NarrowedArgument, keep_exact

PAPER = Policy()


def op(name: str, kind: str, *reads: str) -> Op:
    rule = TORCH_RULES[kind]
    return Op(
        id=name,
        kind=kind,
        rule=rule.name,
        wish=rule.wish,
        inside=rule.inside,
        streams=rule.streams,
        reason="as the table has it",
        reads=reads,
        writes=(name,),
        sensitivity=rule.sensitivity,
    )


def flow(*ops: Op) -> Dataflow:
    """Return a graph that reads a batch ``x``, weights ``w`` and ``v`` and a buffer ``b``."""
    kinds = {"x": Fixed.BATCH, "w": Fixed.PARAMETER, "v": Fixed.PARAMETER, "b": Fixed.BUFFER}
    given = [Tensor(name, 64, fixed) for name, fixed in kinds.items()]
    return Dataflow(ops, (*given, *(Tensor(item.id, 64) for item in ops)))


def full(before: Dataflow, after: Dataflow) -> set[str]:
    """Return the ops that a rule has moved to FP32."""
    pairs = zip(before.ops, after.ops, strict=True)
    return {one.id for one, two in pairs if one.wish is not two.wish is Wish.FULL}


LAYER = op("layer", "linear", "x", "w")


def test_origins() -> None:
    graph = flow(
        LAYER,
        op("gram", "matmul", "x", "b"),
        op("row", "sum", "gram"),
        op("mixed", "add", "layer", "gram"),
        op("table", "embedding", "w"),
        op("made", "arange"),
    )
    found = Origins(graph)
    assert found.of("layer") == Origin.DATA | Origin.PARAMETER | Origin.LAYER
    assert found.of("gram") == Origin.DATA | Origin.GRAM
    assert found.of("row") == Origin.DATA | Origin.GRAM | Origin.SUM
    assert found.of("mixed") == found.of("layer") | found.of("gram")
    assert found.of("table") == Origin.PARAMETER
    assert found.of("made") == Origin.DATA
    assert found.of("b") == Origin(0)
    assert found.of("of the last round of a loop") == Origin.LAYER


def test_an_angle_of_the_batch_is_fp32_as_far_back_as_it_goes() -> None:
    graph = flow(
        op("turned", "mul", "x", "b"), op("moved", "view", "turned"), op("y", "sin", "moved")
    )
    assert full(graph, keep_exact(graph, PAPER)) == {"turned", "moved", "y"}


def test_an_angle_of_a_layer_keeps_the_layer_and_no_layer_before() -> None:
    graph = flow(
        LAYER,
        op("active", "gelu", "layer"),
        op("second", "linear", "active", "v"),
        op("scaled", "mul", "second", "b"),
        op("y", "sin", "scaled"),
    )
    kept = keep_exact(graph, PAPER)
    assert full(graph, kept) == {"active", "second", "scaled", "y"}
    assert "y reads it, and 16 bits hold no fraction" in kept.ops[2].reason
    with pytest.warns(NarrowedArgument, match="second runs in f16, y reads its result"):
        narrowed = keep_exact(graph, Policy(Level.TENSOR_CORES_ONLY))
    assert full(graph, narrowed) == {"scaled", "y"}


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("topk", {"scaled", "y"}),
        ("floor", {"scaled", "y"}),
        ("log", {"scaled"}),  # it computes and writes FP32 in any case
        ("sub", set()),
        ("gt", set()),
        ("mul", set()),
    ],
)
def test_how_far_a_demand_reaches_behind_a_layer(kind: str, kept: set[str]) -> None:
    graph = flow(LAYER, op("scaled", "mul", "layer", "b"), op("y", kind, "scaled"))
    assert full(graph, keep_exact(graph, PAPER)) == kept


def test_what_only_moves_a_rounded_number_stays_in_16_bits() -> None:
    graph = flow(
        LAYER, op("moved", "view", "layer"), op("cut", "relu", "moved"), op("y", "log", "cut")
    )
    assert full(graph, keep_exact(graph, PAPER)) == set()


def test_an_override_ends_a_demand() -> None:
    mine = replace(op("turned", "mul", "x", "b"), wish=Wish.HALF, overridden=True)
    graph = flow(
        op("before", "mul", "x", "b"), replace(mine, reads=("before",)), op("y", "sin", "turned")
    )
    assert full(graph, keep_exact(graph, PAPER)) == {"y"}


def test_a_difference_of_weights_is_not_meant_and_one_of_the_batch_is() -> None:
    for source, kept in (("w", set()), ("x", {"scaled", "y"})):
        graph = flow(op("scaled", "mul", source, "b"), op("y", "sub", "scaled", "b"))
        assert full(graph, keep_exact(graph, PAPER)) == kept


def test_a_squared_distance_by_a_matmul_keeps_the_matmul() -> None:
    length = [op("square", "square", "x"), op("row", "sum", "square")]
    product = op("product", "matmul", "x", "b")
    graph = flow(*length, product, op("y", "add", "row", "product"))
    assert "product" in full(graph, keep_exact(graph, PAPER))
    plain = flow(product, op("y", "add", "x", "product"))
    assert full(plain, keep_exact(plain, PAPER)) == set()


def test_a_number_of_the_batch_beside_a_layers_result_is_fp32_until_a_norm() -> None:
    graph = flow(
        LAYER,
        op("target", "mul", "x", "b"),
        op("apart", "sub", "layer", "target"),
        op("twice", "mul", "apart", "b"),
        op("normed", "layer_norm", "twice"),
        op("after", "mul", "normed", "b"),
    )
    assert full(graph, keep_compared(graph, PAPER)) == {"target", "apart", "twice"}


def test_a_bias_beside_a_layers_result_is_not_meant() -> None:
    graph = flow(LAYER, op("moved", "add", "layer", "v"), op("shifted", "add", "moved", "b"))
    assert full(graph, keep_compared(graph, PAPER)) == set()


def test_a_tensor_times_itself_is_fp32_but_not_a_part_of_it() -> None:
    turned, product = op("turned", "transpose", "layer"), op("y", "matmul", "layer", "turned")
    graph = flow(LAYER, turned, product)
    assert full(graph, keep_grams(graph, PAPER)) == {"y"}
    assert full(graph, keep_grams(graph, Policy(precision=Precision.BF16))) == set()
    assert full(graph, keep_grams(graph, Policy(Level.TENSOR_CORES_ONLY))) == set()
    scores = flow(
        LAYER, turned, product, op("scaled", "mul", "y", "b"), op("p", "softmax", "scaled")
    )
    assert full(scores, keep_grams(scores, PAPER)) == set()
    parts = flow(
        LAYER, op("q", "slice", "layer"), op("k", "slice", "layer"), op("y", "matmul", "q", "k")
    )
    assert full(parts, keep_grams(parts, PAPER)) == set()
    divided = flow(LAYER, op("unit", "div", "layer", "b"), op("y", "matmul", "unit", "unit"))
    assert full(divided, keep_grams(divided, PAPER)) == set()


@pytest.mark.parametrize("rule", [keep_exact, keep_compared, keep_grams])
def test_a_policy_that_changes_nothing_changes_nothing(rule: type) -> None:
    graph = flow(LAYER, op("apart", "sub", "layer", "x"), op("y", "sin", "apart"))
    assert rule(graph, Policy(Level.FP32)) == graph
