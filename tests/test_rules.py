"""The op table and the policy."""

from __future__ import annotations

import pytest
import torch

from mpcompile import rules
from mpcompile.errors import BadInput
from mpcompile.policy import Policy
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


@pytest.mark.parametrize(
    ("policy", "wish", "why"),
    [
        (Policy(), Wish.FREE, "adds no more rounding"),
        (Policy(full=("gelu",)), Wish.FULL, "full='gelu'"),
        (Policy(full=("activation",)), Wish.FULL, "full='activation'"),
        (Policy(full=("encoder.*.mlp",)), Wish.FULL, "full='encoder.*.mlp'"),
        (Policy(full=("encoder.0",)), Wish.FULL, "full='encoder.0'"),
        (Policy(half=("gelu_3",)), Wish.HALF, "half='gelu_3'"),
        (Policy(half=("gelu",), full=("encoder.*",)), Wish.FULL, "full='encoder.*'"),
        (Policy(full=("encoder.1",)), Wish.FREE, "adds no more rounding"),
    ],
)
def test_overrides_by_row_op_module_and_node(policy: Policy, wish: Wish, why: str) -> None:
    rule, got, reason = policy.wish(TORCH_RULES, "gelu", "encoder.0.mlp", "gelu_3")
    assert rule.name == "activation"
    assert got is wish
    assert why in reason


def test_an_op_in_no_row_stays_in_fp32() -> None:
    _, wish, reason = Policy().wish(TORCH_RULES, "no_such_op", "", "")
    assert wish is Wish.FULL
    assert "no row" in reason


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="'fp8' is not a precision"):
        Policy(precision="fp8")  # type: ignore[arg-type]
