"""What follows an op that can overflow FP16 stays in FP32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpcompile
from mpcompile.pipeline import describe, transform
from mpcompile.plan.dataflow import Dataflow, Op, Tensor
from mpcompile.plan.growth import BOUNDED, GROWING, LINEAR, contain_growth
from mpcompile.plan.op_table import ONNX_RULES, TABLE, TORCH_RULES
from mpcompile.plan.rule import Wish
from mpcompile.precision import Precision
from mpcompile.program.capture import capture
from mpcompile.program.workload import Workload
from mpcompile.step.transformed import Choices


class RootMeanSquare(nn.Module):
    """A norm as people write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.nll_loss(model(x), target)


def workload(*middle: nn.Module) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), *middle, nn.Linear(32, 4), nn.LogSoftmax(-1))
    batch = (1000 * torch.randn(16, 8), torch.randint(0, 4, (16,)))
    return Workload(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.0))


def stored(work: Workload, policy: mpcompile.Policy | None = None) -> dict[str, str]:
    plan = transform(work, Choices(policy=policy or mpcompile.Policy())).plan
    return {decision.op: decision.stores.short for decision in plan.decisions}


def test_a_norm_written_by_hand_does_not_overflow() -> None:
    work = workload(RootMeanSquare())
    assert work.optimizer is not None
    with torch.no_grad():
        expected = float(loss(work.model, *work.batch))
    found = stored(work)
    assert (found["pow_1"], found["mean"], found["add"], found["mul"]) == ("f32",) * 4
    step = mpcompile.compile(
        work.model, loss, work.optimizer, work.batch, loss_scale=mpcompile.LossScale.static(1.0)
    )
    assert float(step(*work.batch)) == pytest.approx(expected, rel=1e-3)


def test_the_reason_names_the_op_that_grows() -> None:
    plan = transform(workload(RootMeanSquare())).plan
    assert "it follows pow_1" in plan.decision("mean").reason
    assert "it follows rsqrt" in plan.decision("mul").reason


def test_bf16_has_the_range_and_an_override_the_word() -> None:
    bf16 = stored(workload(RootMeanSquare()), mpcompile.Policy(precision=Precision.BF16))
    assert bf16["mul"] == "bf16"
    free = stored(workload(RootMeanSquare()), mpcompile.Policy(free=("mul",)))
    assert free["mul"] == "f16"


class Gate(nn.Module):
    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grown = x.exp()
        return torch.tanh(grown) * x if self.bounded else nn.functional.softplus(x) * x


@pytest.mark.parametrize("bounded", [True, False])
def test_what_is_bounded_or_grows_no_faster_than_its_input_may_be_16_bits(bounded: bool) -> None:
    assert stored(workload(Gate(bounded)))["mul"] == "f16"


def test_nothing_grows_in_a_graph_without_such_ops() -> None:
    assert contain_growth(Dataflow((), ()), Precision.FP16) == Dataflow((), ())


def test_growth_goes_round_a_loop() -> None:
    """The body's first op reads what its last op has made in the round before."""

    def op(name: str, rule: str, reads: str, writes: str, view: bool = False) -> Op:
        wish = Wish.FULL if rule == "range grows" else Wish.FREE
        return Op(name, name, rule, wish, False, not view, "", (reads,), (writes,), view=view)

    flow = Dataflow(
        (
            op("carry", "control flow", "made", "carried", view=True),
            op("mul", "pointwise", "carried", "scaled"),
            op("exp", "range grows", "scaled", "made"),
        ),
        tuple(Tensor(name, 8) for name in ("carried", "scaled", "made")),
    )
    found = contain_growth(flow, Precision.FP16)
    assert [row.wish for row in found.ops] == [Wish.FULL] * 3


def test_every_name_stands_in_the_table() -> None:
    assert set(TORCH_RULES) | set(ONNX_RULES) >= BOUNDED | LINEAR
    assert {rule.name for rule in TABLE} >= GROWING


def test_a_norm_with_a_weight_that_has_grown_does_not_bound_it() -> None:
    def op(name: str, kind: str, *reads: str, full: tuple[str, ...] = ()) -> Op:
        rule = TORCH_RULES[kind]
        return Op(name, kind, rule.name, rule.wish, rule.inside, True, "", reads, (name,), (), full)

    ops = (
        op("grown", "square", "x"),
        op("plain", "layer_norm", "grown"),
        op("scaled", "layer_norm", "x", "grown", full=("grown",)),
        op("after", "mul", "scaled"),
        op("other", "mul", "plain"),
    )
    tensors = tuple(Tensor(name, 8) for name in ("x", *(item.id for item in ops)))
    found = contain_growth(Dataflow(ops, tensors), Precision.FP16)
    wide = {item.id for item in found.ops if item.wish is Wish.FULL}
    assert wide == {"grown", "scaled", "after"}


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.int64, {"to", "maximum", "mul"}), (torch.uint8, {"to"})]
)
def test_integers_of_unknown_size_may_be_too_large(dtype: torch.dtype, wide: set[str]) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(torch.maximum(counts.to(x.dtype), x) * 1e-6)
            return result

    batch = (torch.randn(16, 8), torch.ones(16, 8).to(dtype))
    flow = describe(capture(Workload(Counts(), batch, None, None)), mpcompile.Policy())
    ops = contain_growth(flow, Precision.FP16).ops
    assert {op.id for op in ops if op.writes and op.wish is Wish.FULL} == wide
