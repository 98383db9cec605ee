"""Who decided about an op, read back from the reason that a plan file holds."""

from __future__ import annotations

from programs.small_plan import FLOW, PLAN, edited

from mpcompile.plan.authors import Author, author_of
from mpcompile.plan.given import decide
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.plan import Plan
from mpcompile.plan.policy import Level, Policy, Row, resolve
from mpcompile.precision import Precision


def test_an_edited_decision_has_a_person_as_author_even_after_another_file() -> None:
    found = decide(FLOW, Precision.FP16, edited(PLAN, gelu="float32"))
    again = decide(FLOW, Precision.FP16, Plan.from_json(found.to_json()))
    for plan in (found, again):
        authors = {d.op: author_of(d.reason) for d in plan.decisions}
        assert authors.pop("gelu") is Author.PLAN
        assert set(authors.values()) == {None}


def test_an_override_has_a_person_as_author_and_no_level_has() -> None:
    rows = (Row("a", "gelu"), Row("b", "linear"), Row("c", "softmax"), Row("d", "exp"))
    for level in Level:
        wishes = resolve(Policy(level=level), TORCH_RULES, rows).wishes
        assert {author_of(reason) for _, _, reason in wishes.values()} == {None}
    wishes = resolve(Policy(full=("op:gelu",)), TORCH_RULES, rows).wishes
    assert {name for name in wishes if author_of(wishes[name][2])} == {"a"}
    assert author_of(wishes["a"][2]) is Author.OVERRIDE
