"""The op table."""

from __future__ import annotations

import pytest
import torch

from mpcompile import rules
from mpcompile.rules import TABLE, TORCH_RULES, Rule, Wish

# Functions of torch.nn.functional that only ever reach a graph decomposed, and names of other
# versions; harmless, and they make the table easier to read against torch's documentation.
NOT_IN_ATEN = frozenset(
    "nll_loss2d local_response_norm normalize relu6 mT mH interpolate gaussian_nll_loss softsign "
    "tanhshrink renorm dist log_sigmoid_forward".split()
)


def test_every_torch_name_is_an_aten_op() -> None:
    missing = {name for name in TORCH_RULES if not hasattr(torch.ops.aten, name)} - NOT_IN_ATEN
    assert missing == set()


def test_no_op_stands_in_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    again = Rule("again", "softmax", "", Wish.HALF, False, "", "why")
    monkeypatch.setattr(rules, "TABLE", (*TABLE, again))
    with pytest.raises(ValueError, match="softmax stands in two rows: softmax and again"):
        rules._by_name("torch")


def test_every_row_has_a_reason_and_both_kinds_of_names() -> None:
    for rule in TABLE:
        assert rule.why
        assert rule.torch
        assert rule.onnx
        assert set(rule.saves.split()) <= {"in", "out"}
