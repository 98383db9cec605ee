"""The rows of the op table."""

from __future__ import annotations

import pytest

from mpcompile.plan import op_table
from mpcompile.plan.op_table import ONNX_RULES, TABLE, TORCH_RULES
from mpcompile.plan.rule import PrecisionClass, Rule, Wish


def test_no_op_stands_in_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    again = Rule("again", "softmax", "", PrecisionClass.WIDE, "", False, "why")
    monkeypatch.setattr(op_table, "TABLE", (*TABLE, again))
    with pytest.raises(ValueError, match="softmax is in two rows: softmax and again"):
        op_table._by_name("torch")


def test_no_op_stands_twice_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = Rule("twice", "new_op new_op", "", PrecisionClass.WIDE, "", False, "why")
    monkeypatch.setattr(op_table, "TABLE", (*TABLE, twice))
    with pytest.raises(ValueError, match="new_op is in two rows: twice and twice"):
        op_table._by_name("torch")


def test_every_row_has_a_reason_and_names() -> None:
    for rule in TABLE:
        assert rule.name
        assert rule.why
        assert rule.torch
        assert rule.saves in ("", "in", "out", "in out")


def test_rows_of_one_name_are_one_family() -> None:
    families = {(rule.name, rule.precision_class, rule.why) for rule in TABLE}
    assert len(families) == len({rule.name for rule in TABLE})


@pytest.mark.parametrize(
    ("precision_class", "wish", "inside"),
    [
        (PrecisionClass.TENSOR_CORE, Wish.HALF, False),
        (PrecisionClass.REDUCTION, Wish.FREE, True),
        (PrecisionClass.WIDE, Wish.FULL, True),
        (PrecisionClass.EITHER, Wish.FREE, False),
        (PrecisionClass.TRANSPARENT, Wish.FREE, False),
        (PrecisionClass.UNTOUCHABLE, Wish.FULL, True),
    ],
)
def test_the_class_gives_wish_and_arithmetic(
    precision_class: PrecisionClass, wish: Wish, inside: bool
) -> None:
    rule = Rule("row", "op", "", precision_class, "", False, "why")
    assert (rule.wish, rule.inside) == (wish, inside)
    assert any(row.precision_class is precision_class for row in TABLE)


@pytest.mark.parametrize(
    ("torch_name", "onnx_name"),
    [
        ("linear", "Gemm"),
        ("conv2d", "Conv"),
        ("layer_norm", "LayerNormalization"),
        ("softmax", "Softmax"),
        ("log_softmax", "LogSoftmax"),
        ("exp", "Exp"),
        ("sum", "ReduceSum"),
        ("relu", "Relu"),
        ("avg_pool2d", "AveragePool"),
        ("cat", "Concat"),
        ("rand", "RandomUniform"),
    ],
)
def test_torch_and_onnx_names_of_one_op_share_a_row(torch_name: str, onnx_name: str) -> None:
    assert TORCH_RULES[torch_name] is ONNX_RULES[onnx_name]
