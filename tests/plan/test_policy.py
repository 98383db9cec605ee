"""Levels and overrides: which op may run in which precision, and who said so."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, Level, Policy, Precision, UnmatchedOverride
from mpcompile.pipeline import describe, transform
from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.plan.plan import Plan
from mpcompile.plan.planner import make_plan
from mpcompile.plan.policy import Row, resolve
from mpcompile.plan.rule import Wish
from mpcompile.program.capture import capture
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices

GELU = Row("gelu_3", "gelu", "encoder.0.mlp")


def wish(policy: Policy, row: Row = GELU) -> tuple[Wish, str]:
    return resolve(policy, TORCH_RULES, [row]).wishes[row.node][1:]


@pytest.mark.parametrize(
    ("policy", "expected", "why"),
    [
        (Policy(), Wish.FREE, "adds no more rounding"),
        (Policy(full=("gelu",)), Wish.FULL, "full='gelu'"),
        (Policy(full=("op:gelu",)), Wish.FULL, "full='op:gelu'"),
        (Policy(full=("activation",)), Wish.FULL, "full='activation'"),
        (Policy(full=("encoder.*.mlp",)), Wish.FULL, "full='encoder.*.mlp'"),
        (Policy(full=("encoder.0",)), Wish.FULL, "full='encoder.0'"),
        (Policy(half=("gelu_3",)), Wish.HALF, "half='gelu_3'"),
        (Policy(half=("gelu",), full=("encoder.*",)), Wish.FULL, "full='encoder.*'"),
        (Policy(half=("encoder.*",), full=("gelu",)), Wish.HALF, "half='encoder.*'"),
        (Policy(half=("encoder",), full=("encoder.0",)), Wish.FULL, "full='encoder.0'"),
        (Policy(full=("*",), half=("activation",)), Wish.HALF, "half='activation'"),
        (Policy(full=("node:gelu",)), Wish.FREE, "adds no more rounding"),
    ],
)
def test_overrides_by_row_op_module_and_node(policy: Policy, expected: Wish, why: str) -> None:
    rule = resolve(policy, TORCH_RULES, [GELU]).wishes["gelu_3"][0]
    got, reason = wish(policy)
    assert rule.name == "activation"
    assert got is expected
    assert why in reason


def test_an_op_in_no_row_stays_in_fp32() -> None:
    got, reason = wish(Policy(), Row("n", "no_such_op"))
    assert got is Wish.FULL
    assert "no row" in reason


# From least to most specific for GELU; each must beat all before it.
LADDER = (
    "*",
    "row:act*",
    "activation",
    "op:ge*",
    "gel*",
    "gelu*",
    "gelu",
    "*.mlp",
    "encoder",
    "encoder.*",
    "encoder.0",
    "encoder.?.mlp",
    "module:encoder.0.mlp*",
    "encoder.0.mlp",
    "node:g*",
    "*_3",
    "gelu_*",
    "gelu_3",
)


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.sampled_from(LADDER), min_size=1),
    st.randoms(use_true_random=False),
    st.sampled_from(Level),
)
def test_the_more_specific_wins_whatever_the_order(
    patterns: set[str], chooser: random.Random, level: Level
) -> None:
    if level is Level.FP32:
        return
    shuffled = sorted(patterns)
    chooser.shuffle(shuffled)
    lists: dict[Wish, list[str]] = {item: [] for item in Wish}
    for pattern in shuffled:
        lists[chooser.choice(list(Wish))].append(pattern)
    strongest = max(patterns, key=LADDER.index)
    policy = Policy(
        level,
        full=tuple(lists[Wish.FULL]),
        half=tuple(lists[Wish.HALF]),
        free=tuple(lists[Wish.FREE]),
    )
    got, reason = wish(policy)
    assert strongest in lists[got]
    assert repr(strongest) in reason


def test_a_name_of_many_ops_does_not_mean_the_first_node_more_than_the_others() -> None:
    rows = [Row("gelu", "gelu", "encoder"), Row("gelu_1", "gelu", "encoder")]
    policy = Policy(full=("gelu",), half=("encoder",))
    wishes = resolve(policy, TORCH_RULES, rows).wishes
    assert {node: row[1] for node, row in wishes.items()} == {
        "gelu": Wish.HALF,
        "gelu_1": Wish.HALF,
    }


@pytest.mark.parametrize(
    ("full", "half"),
    [("gelu", "gelu"), ("encoder.*.mlp", "encoder.?.mlp"), ("gelu_3", "node:gelu_3")],
)
def test_contradictory_overrides_are_refused_by_name(full: str, half: str) -> None:
    with pytest.raises(BadInput) as caught:
        wish(Policy(full=(full,), half=(half,)))
    assert f"full={full!r} and half={half!r} both name gelu_3" in str(caught.value)


def test_what_would_contradict_may_be_settled_by_a_more_specific_override() -> None:
    assert wish(Policy(full=("gelu",), half=("gelu",), free=("gelu_3",)))[0] is Wish.FREE
    assert wish(Policy(full=("gelu", "ge*"), half=("encoder.0.mlp",)))[0] is Wish.HALF
    assert wish(Policy(full=("gelu", "op:gelu")))[0] is Wish.FULL


def test_an_override_that_matches_nothing_names_the_nearest() -> None:
    rows = [GELU, Row("linear", "linear", "head.attn")]
    found = resolve(Policy(full=("gellu", "gelu"), half=("head.atn",)), TORCH_RULES, rows)
    assert found.unmatched == (
        "full='gellu' matches no op; the nearest names are gelu, gelu_3",
        "half='head.atn' matches no op; the nearest names are head.attn, head",
    )
    with pytest.warns(UnmatchedOverride) as caught:
        found.warn()
    assert [str(warning.message) for warning in caught] == list(found.unmatched)
    assert resolve(Policy(full=("zzz",)), TORCH_RULES, rows).unmatched == (
        "full='zzz' matches no op",
    )


def test_the_library_warns_of_an_override_that_matches_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1))
    program = torch.export.export(model, (torch.randn(2, 4),))
    with pytest.warns(UnmatchedOverride, match="nearest names are linear"):
        mpcompile.rewrite(program, Policy(half=("linaer",)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mpcompile.rewrite(program, Policy(half=("linear",)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"precision": "fp8"}, "'fp8' is not a precision; use Precision.X"),
        (
            {"level": "careful"},
            "'careful' is not a level; use Level.X, where X is one of CAREFUL, PAPER",
        ),
        ({"full": "gelu"}, r"full is 'gelu'; write full=\('gelu',\)"),
        ({"half": (3,)}, "half holds 3"),
        ({"free": ("",)}, "free holds ''"),
        ({"free": ("op:",)}, "free holds 'op:'"),
        ({"free": ("modul:x",)}, r"'modul' is not a kind of name \(did you mean 'module'\?\)"),
    ],
)
def test_what_is_no_policy_is_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        Policy(**arguments)  # type: ignore[arg-type]


class Block(nn.Module):
    """A pre-norm transformer block after an embedding, with the attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 16)
        self.place = nn.Parameter(torch.randn(6, 16))
        self.norm = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.wide = nn.Linear(16, 32)
        self.back = nn.Linear(32, 16)
        self.register_buffer("mask", torch.zeros(2, 6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.words(x) + self.place
        query, key, value = self.mix(self.norm(hidden)).chunk(3, dim=-1)
        scores = query @ key.transpose(-1, -2) + self.mask
        hidden = hidden + self.out(torch.softmax(scores, dim=-1) @ value)
        middle = nn.functional.gelu(self.wide(self.norm2(hidden)))
        result: torch.Tensor = hidden + self.back(middle)
        return result @ self.words.weight.transpose(0, 1)


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def block() -> Workload:
    torch.manual_seed(0)
    model = Block()
    batch = (torch.randint(0, 12, (2, 6)), torch.randint(0, 12, (2, 6)))
    return Workload(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.01))


def plan_by(policy: Policy) -> Plan:
    return transform(block(), Choices(policy=policy)).plan


def stored(plan: Plan) -> dict[str, str]:
    return {d.op: d.stores.short for d in plan.decisions}


def test_careful_stores_residuals_norms_and_softmax_in_fp32() -> None:
    paper, careful = stored(plan_by(Policy())), stored(plan_by(Policy(Level.CAREFUL)))
    full = {"layer_norm", "layer_norm_1", "softmax", "add_2", "add_3"}
    for op in full:
        assert (paper[op], careful[op]) == ("f16", "f32")
    # Not residual streams: an embedding plus a broadcast parameter, scores plus a buffer.
    reasons = {d.op: d.reason for d in plan_by(Policy(Level.CAREFUL)).decisions}
    assert [op for op, why in reasons.items() if "residual" in why] == ["add_2", "add_3"]
    assert careful["add_1"] == "f16"
    # The rest is as the paper has it.
    assert {op for op in paper if paper[op] != careful[op]} == full


class Sums(nn.Module):
    """Sums that are residual streams, and sums that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.randn(32))
        self.register_buffer("shift", torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.one(x)
        residual = x + torch.relu(a)
        both = residual + residual
        turned = both.transpose(0, 1).contiguous() + torch.tanh(both).view(8, 4)
        broadcast = turned.view(4, 8) + a.mean(-1, keepdim=True)
        number = broadcast + 1.0
        parameter = number + self.scale.view(4, 8)
        buffer = parameter + self.shift
        difference = buffer - a
        result: torch.Tensor = self.one(difference)
        return result


def test_what_is_a_residual_stream() -> None:
    workload = Workload(Sums(), (torch.randn(4, 8),))
    flow = describe(capture(workload), Policy(Level.CAREFUL))
    adds = {op.id: "residual" in op.reason for op in flow.ops if op.kind == "add"}
    assert list(adds.values()) == [True, True, True, False, False, False, False]


def test_tensor_cores_only_casts_right_round_the_tensor_core_ops() -> None:
    workload = block()
    policy = Policy(Level.TENSOR_CORES_ONLY)
    flow = describe(capture(workload), policy)
    plan = make_plan(flow, policy.precision)
    rules = {op.id: op.rule for op in flow.ops}
    writer = {tensor: op.id for op in flow.ops for tensor in op.writes}
    near = {"matmul", "attention", "conv", "rnn", "movement"}
    for decision in plan.decisions:
        if decision.stores is not Precision.FP32:
            assert rules[decision.op] in near
        if rules[decision.op] == "matmul":
            assert decision.stores is Precision.FP16
    for cast in plan.casts:
        if cast.to is Precision.FP16:
            assert {rules[reader] for reader in cast.readers} <= near
        else:
            assert rules[writer[cast.tensor]] in near
    # From the mixing matmul through chunk and transpose to the scores nothing is cast.
    assert stored(plan)["transpose"] == "f16"
    assert len(plan.casts) < 2 * sum(rule == "matmul" for rule in rules.values()) + 12


def test_from_careful_to_aggressive_more_is_stored_in_16_bits() -> None:
    counts = [
        sum(stores == "f16" for stores in stored(plan_by(Policy(level))).values())
        for level in (Level.FP32, Level.TENSOR_CORES_ONLY, Level.CAREFUL, Level.PAPER)
    ]
    assert counts[0] == 0
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("level", [Level.CAREFUL, Level.PAPER, Level.TENSOR_CORES_ONLY])
def test_every_level_trains_close_to_fp64(level: Level) -> None:
    mine, plain = block(), block()
    plain.model.double()
    assert mine.optimizer and plain.optimizer
    scale = mpcompile.LossScale.static(64.0)
    step = mpcompile.compile(
        mine.model, loss, mine.optimizer, mine.batch, policy=Policy(level), loss_scale=scale
    )
    for _ in range(5):
        got = step(*mine.batch)
        plain.optimizer.zero_grad()
        expected = loss(plain.model, *plain.batch)
        expected.backward()
        plain.optimizer.step()
        torch.testing.assert_close(got.double(), expected.detach(), rtol=5e-3, atol=0)
    assert step.skipped == 0


def test_fp32_changes_nothing_whatever_the_overrides_say() -> None:
    assert Policy(Level.FP32) == Policy(precision=Precision.FP32) == FULL_PRECISION
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1)).eval()
    program = torch.export.export(model, (torch.randn(2, 8),), strict=False)
    after = mpcompile.rewrite(program, Policy(Level.FP32, half=("linear", "softmax")))
    assert graph_text(after.graph) == graph_text(program.graph)


def test_the_fp32_level_trains_bit_for_bit_as_plain_pytorch() -> None:
    mine, plain = block(), block()
    assert mine.optimizer and plain.optimizer
    policy = Policy(Level.FP32, half=("linear",))
    step = mpcompile.compile(mine.model, loss, mine.optimizer, mine.batch, policy=policy)
    for _ in range(3):
        got = step(*mine.batch)
        plain.optimizer.zero_grad()
        expected = loss(plain.model, *plain.batch)
        expected.backward()
        plain.optimizer.step()
        assert torch.equal(got, expected.detach())
    for one, two in zip(mine.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two)
