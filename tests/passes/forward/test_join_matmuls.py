"""Linears of one input become one matmul, and nobody can tell but by the time it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from oracles.error import errors
from programs.graphs import WORKLOADS, cross_entropy, forward_of
from torch import nn

import mpcompile
from mpcompile.lower.lower import Lowering
from mpcompile.passes.forward.join_matmuls import JoinMatmuls
from mpcompile.pipeline import to_step, transform
from mpcompile.plan.policy import FULL_PRECISION, Policy
from mpcompile.precision import Precision
from mpcompile.program.graph_text import graph_text
from mpcompile.program.workload import Workload
from mpcompile.step.arena import ArenaPosition
from mpcompile.step.slots import Role
from mpcompile.step.transformed import Choices, Transformed


class Heads(nn.Module):
    """Query, key without a bias, value of another width; then attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(8, 8, bias=False)
        self.value = nn.Linear(8, 16)
        self.leave = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0] * x.shape[1]
        q = self.query(x).view(rows * 2, 4).view(*x.shape[:2], 2, 4).transpose(1, 2)
        k = self.key(x).unflatten(-1, (2, 4)).transpose(1, 2)
        v = self.value(x).view(*x.shape[:2], 2, 8).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.leave(mixed.transpose(1, 2).reshape(rows, 16))
        return result


class Gated(nn.Module):
    """Two linears of one input, changed by a function; the gate's activation lies between them."""

    def __init__(self, change: Callable[[Gated], None] | None = None) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)
        self.late = nn.Linear(8, 8, bias=False)
        if change is not None:
            change(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        result: torch.Tensor = hidden + self.late(x)
        return result


def batch(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = shape[0] * (shape[1] if len(shape) > 2 else 1)
    generator = torch.Generator().manual_seed(1)
    classes = 3 if len(shape) > 2 else 8
    return (
        torch.randn(*shape, generator=generator),
        torch.randint(0, classes, (rows,), generator=generator),
    )


def heads() -> Workload:
    torch.manual_seed(0)
    model = Heads()
    return Workload(
        model, batch(2, 5, 8), cross_entropy, torch.optim.AdamW(model.parameters(), lr=0.01)
    )


def gated(
    change: Callable[[Gated], None] | None = None,
    optimizer: Callable[[Gated], torch.optim.Optimizer] | None = None,
) -> Workload:
    torch.manual_seed(0)
    model = Gated(change)
    make = optimizer or (lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    return Workload(model, batch(6, 8), cross_entropy, make(model))


def joined(workload: Workload, policy: Policy | None = None) -> Transformed:
    made = transform(workload, Choices(policy=policy or Policy()))
    assert made.step is not None
    made.step.check()
    return made


def test_query_key_and_value_become_one_matmul() -> None:
    workload = heads()
    forward = forward_of(workload)
    positions = {item.node: ArenaPosition("arena0", 0, True) for item in forward.inputs}
    assert JoinMatmuls(positions)(forward.module) == 3
    assert_expected_inline(
        graph_text(forward.module.graph),
        """\
p_model_query_weight          f32[8,8]      input
p_model_query_bias            f32[8]        input
p_model_key_weight            f32[8,8]      input
p_model_value_weight          f32[16,8]     input
p_model_value_bias            f32[16]       input
p_model_leave_weight          f32[3,16]     input
p_model_leave_bias            f32[3]        input
batch_0                       f32[2,5,8]    input
batch_1                       i64[10]       input
p_model_query_weight_f16      f16[8,8]      _to_copy p_model_query_weight dtype=f16
p_model_query_bias_f16        f16[8]        _to_copy p_model_query_bias dtype=f16
batch_0_f16                   f16[2,5,8]    _to_copy batch_0 dtype=f16
p_model_key_weight_f16        f16[8,8]      _to_copy p_model_key_weight dtype=f16
p_model_value_weight_f16      f16[16,8]     _to_copy p_model_value_weight dtype=f16
p_model_value_bias_f16        f16[16]       _to_copy p_model_value_bias dtype=f16
cat_default                   f16[32,8]     cat [p_model_query_weight_f16,p_model_key_weight_f16,p_model_value_weight_f16]
new_zeros_default             f16[8]        new_zeros cat_default [8]
cat_default_1                 f16[32]       cat [p_model_query_bias_f16,new_zeros_default,p_model_value_bias_f16]
linear_default                f16[2,5,32]   linear batch_0_f16 cat_default cat_default_1
split_with_sizes_default      tuple         split_with_sizes linear_default [8,8,16] -1
getitem                       f16[2,5,8]    getitem split_with_sizes_default 0
getitem_1                     f16[2,5,8]    getitem split_with_sizes_default 1
getitem_2                     f16[2,5,16]   getitem split_with_sizes_default 2
view                          f16[20,4]     reshape getitem [20,4]
view_1                        f16[2,5,2,4]  reshape view [2,5,2,4]
transpose                     f16[2,2,5,4]  transpose view_1 1 2
unflatten                     f16[2,5,2,4]  unflatten getitem_1 -1 [2,4]
transpose_1                   f16[2,2,5,4]  transpose unflatten 1 2
view_2                        f16[2,5,2,8]  reshape getitem_2 [2,5,2,8]
transpose_2                   f16[2,2,5,8]  transpose view_2 1 2
scaled_dot_product_attention  f16[2,2,5,8]  scaled_dot_product_attention transpose transpose_1 transpose_2
transpose_3                   f16[2,5,2,8]  transpose scaled_dot_product_attention 1 2
reshape                       f16[10,16]    reshape transpose_3 [10,16]
p_model_leave_weight_f16      f16[3,16]     _to_copy p_model_leave_weight dtype=f16
p_model_leave_bias_f16        f16[3]        _to_copy p_model_leave_bias dtype=f16
linear_3                      f16[10,3]     linear reshape p_model_leave_weight_f16 p_model_leave_bias_f16
linear_3_f32                  f32[10,3]     _to_copy linear_3 dtype=f32
cross_entropy_loss            f32[]         cross_entropy_loss linear_3_f32 batch_1
return                                      cross_entropy_loss""",
    )
    assert JoinMatmuls(positions)(forward.module) == 0


def test_the_step_reads_one_weight_and_copies_none() -> None:
    made = joined(heads())
    assert made.changes["join_matmuls"] == 3
    assert made.changes["lay_out_copies"] == 1
    step = made.step
    assert step is not None
    assert step.joined == {"query.weight.joined": ("query.weight", "key.weight", "value.weight")}
    reads = {n.meta["slot"] for n in step.gradient.graph.find_nodes(op="placeholder")}
    assert not reads & {f"{name}.working" for name in step.joined["query.weight.joined"]}
    apart = transform(heads(), Choices(without=["join_matmuls"])).step
    assert apart is not None
    assert [matmuls(apart), matmuls(step)] == [4 + 5, 2 + 3]
    gradients = {n: s.shape for n, s in step.slots.items() if s.role is Role.GRADIENT}
    assert gradients == {n: s.shape for n, s in apart.slots.items() if s.role is Role.GRADIENT}


def matmuls(step: Any) -> int:
    text = graph_text(step.gradient.graph)
    return sum(line.split()[2] in ("mm", "addmm") for line in text.splitlines())


@pytest.mark.parametrize("make", [heads, gated])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_the_error_against_fp64_is_that_of_separate_matmuls(
    make: Callable[[], Workload], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = make()
    assert workload.loss is not None
    policy = Policy(precision=precision)
    together, _ = errors(workload.model, workload.loss, [workload.batch], policy)
    monkeypatch.setattr("mpcompile.pipeline.matmul_passes", lambda *_: ())
    apart, _ = errors(workload.model, workload.loss, [workload.batch], policy)
    assert 0 < together.gradient <= 1.1 * apart.gradient
    assert together.loss <= 1.1 * apart.loss + 1e-4


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_training_goes_as_without_and_a_checkpoint_fits_both(backend: Any) -> None:
    found = []
    for without in ((), ("join_matmuls",)):
        workload = heads()
        step = to_step(
            transform(workload, Choices(without=without)),
            Lowering(backend=backend, memory_budget=0.5),
        )
        losses = [float(step(*workload.batch)) for _ in range(4)]
        found.append((losses, workload, step))
    (left, mine, step), (right, other, _) = found
    assert left == pytest.approx(right, rel=2e-3)
    assert mine.model.state_dict().keys() == other.model.state_dict().keys()
    assert mine.optimizer is not None
    assert other.optimizer is not None
    mine.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
    mine.model.load_state_dict(other.model.state_dict())
    gradients = step.gradients(*mine.batch)
    again = found[1][2].gradients(*mine.batch)
    for name, parameter in other.model.named_parameters():
        assert gradients[name].shape == parameter.shape
        torch.testing.assert_close(gradients[name], again[name], rtol=0.02, atol=2e-4)
    for name, value in mine.model.named_parameters():
        state = mine.optimizer.state[value]["exp_avg"]
        expected = other.optimizer.state[dict(other.model.named_parameters())[name]]["exp_avg"]
        assert torch.equal(state, expected), name


def test_the_joined_weight_is_memory_of_the_arena() -> None:
    workload = heads()
    step = to_step(transform(workload))
    whole, arena = step._state["query.weight.joined"], step._state["arena0.working"]
    assert whole.untyped_storage().data_ptr() == arena.untyped_storage().data_ptr()
    step(*workload.batch)
    names = step.step.joined["query.weight.joined"]
    rows = [workload.model.get_parameter(name).detach() for name in names]
    assert torch.equal(whole, torch.cat(rows).half())
    loss, *_ = step.step_graph(*whole_inputs(step, workload.batch))
    assert float(loss) == pytest.approx(float(step(*workload.batch)), rel=1e-2)


def whole_inputs(step: Any, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    values = {f"batch.{place}": value for place, value in enumerate(given)} | step._state
    nodes = step.step_graph.graph.find_nodes(op="placeholder")
    return [values[node.meta["slot"]] for node in nodes]


def test_what_is_needed_after_a_matmul_is_not_joined_with_what_went_in() -> None:
    made = joined(gated())
    assert made.changes["join_matmuls"] == 2
    assert made.step is not None
    assert made.step.joined == {"gate.weight.joined": ("gate.weight", "up.weight")}


def tie(model: Gated) -> None:
    model.up.weight = model.gate.weight


def freeze(model: Gated) -> None:
    model.up.weight.requires_grad_(False)


def widen(model: Gated) -> None:
    model.gate, model.up = nn.Linear(8, 18, bias=False), nn.Linear(8, 18, bias=False)
    model.down = nn.Linear(18, 8, bias=False)


def narrow(model: Gated) -> None:
    model.gate, model.up = nn.Linear(8, 12, bias=False), nn.Linear(8, 12, bias=False)
    model.down = nn.Linear(12, 8, bias=False)


def in_two_groups(model: Gated) -> torch.optim.Optimizer:
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.2}, {"params": rest}]
    return torch.optim.SGD(groups, lr=0.1)


def with_muon(model: Gated) -> torch.optim.Optimizer:
    return torch.optim.Muon(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("change", "optimizer"),
    [
        (tie, None),
        (freeze, None),
        (widen, None),
        (narrow, None),
        (None, in_two_groups),
        (None, with_muon),
    ],
)
def test_weights_that_cannot_be_neighbours_stay_apart(change: Any, optimizer: Any) -> None:
    made = joined(gated(change, optimizer))
    assert made.changes["join_matmuls"] == 0
    assert made.step is not None
    assert not made.step.joined


def test_in_fp32_nothing_is_joined() -> None:
    assert joined(heads(), FULL_PRECISION).changes["join_matmuls"] == 0


def test_workloads_without_such_linears_are_left_alone() -> None:
    for make in WORKLOADS.values():
        assert joined(make()).changes["join_matmuls"] == 0


def test_two_steps_of_one_model_see_each_other() -> None:
    workload = heads()
    step = to_step(transform(workload))
    before = step.gradients(*workload.batch)["key.weight"]
    with torch.no_grad():
        workload.model.get_parameter("query.weight").mul_(2)
    assert not torch.equal(before, step.gradients(*workload.batch)["key.weight"])


def test_compile_takes_the_name_and_refuses_another() -> None:
    workload = heads()
    assert workload.loss is not None
    assert workload.optimizer is not None
    given = (workload.model, workload.loss, workload.optimizer, workload.batch)
    assert not mpcompile.compile(*given, without=["join_matmuls"]).step.joined
    with pytest.raises(mpcompile.BadInput, match="did you mean 'join_matmuls'"):
        mpcompile.compile(*given, without=["join_matmul"])
