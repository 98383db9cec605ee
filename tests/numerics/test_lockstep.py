"""The lockstep runs: our run equals the step, and the wide runs equal plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from nets.small_models import compiled, workload
from planted import marked
from programs.graphs import WORKLOADS
from torch import nn

from mpcompile import LossScale, Policy, TrainStep, Workload
from mpcompile.numerics.lockstep import Seen, lockstep, moment
from mpcompile.step.graph import results

SCALE = 2.0**10


def step_of(made: Workload, policy: Policy | None = None) -> TrainStep:
    return compiled(made, "interpreter", policy, LossScale.static(SCALE))


def gradients(step: TrainStep, seen: list[Seen]) -> dict[str, Seen]:
    by_node = {item.node.name: item for item in seen}
    return {
        name.removeprefix("grad."): by_node[node.name]
        for name, node in results(step.step.gradient.graph).items()
        if name.startswith("grad.")
    }


def plain_gradients(made: Workload, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    assert made.loss is not None
    model = copy.deepcopy(made.model).to(dtype)
    batch = [b.to(dtype) if b.is_floating_point() else b for b in made.batch]
    torch.autograd.backward(made.loss(model, *batch))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", WORKLOADS)
def test_our_run_is_the_step_and_the_wide_runs_are_plain_pytorch(name: str) -> None:
    made = WORKLOADS[name]()
    step = step_of(made)
    truth, full = (plain_gradients(made, d) for d in (torch.float64, torch.float32))
    expected = step.gradients(*made.batch)
    found = gradients(step, list(lockstep(moment(step, *made.batch))))
    assert found.keys() == expected.keys() == truth.keys()
    for weight, seen in found.items():
        assert torch.equal(seen.ours.float() / SCALE, expected[weight])
        torch.testing.assert_close(seen.exact / SCALE, truth[weight], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(seen.full / SCALE, full[weight], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt", "lstm", "bert"])
def test_models_agree_with_the_step_bit_for_bit(name: str) -> None:
    made = workload(name, "cpu")
    step = step_of(made)
    torch.manual_seed(5)
    expected = step.gradients(*made.batch)
    torch.manual_seed(5)
    found = gradients(step, list(lockstep(moment(step, *made.batch))))
    for weight, seen in found.items():
        assert torch.equal(seen.ours.float() / SCALE, expected[weight]), weight


def test_every_float_tensor_of_the_step_is_seen_once_and_in_order() -> None:
    made = WORKLOADS["attention"]()
    step = step_of(made)
    floats = [
        node.name
        for node in step.step.gradient.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
        if node.meta["val"].is_floating_point()
    ]
    seen = list(lockstep(moment(step, *made.batch)))
    assert [item.node.name for item in seen] == floats
    for item in seen:
        assert item.ours.dtype is item.node.meta["val"].dtype
        assert item.exact.dtype is item.own.dtype is torch.float64
        assert item.full.dtype is torch.float32
        assert item.exact.shape == item.node.meta["val"].shape


def test_own_differs_from_ours_by_one_rounding() -> None:
    made = WORKLOADS["tied"]()
    for item in lockstep(moment(step_of(made), *made.batch)):
        if item.ours.dtype is torch.float16 and item.node.op == "call_function":
            bound = item.own.abs() * 2.0**-11 + 2.0**-24
            # FP32 arithmetic before the rounding may tip it over.
            assert bool(((item.ours.double() - item.own).abs() <= 1.01 * bound).all()), item.node


def test_reads_are_the_results_of_the_nodes_before() -> None:
    made = WORKLOADS["layered"]()
    before: dict[str, torch.Tensor] = {}
    for item in lockstep(moment(step_of(made), *made.batch)):
        for name, value in item.reads:
            assert torch.equal(value, before[name])
        before[item.node.name] = item.ours


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(nn.functional.dropout(self.first(x).relu(), 0.5))
        return result


def dropped() -> Workload:
    torch.manual_seed(0)
    model = Dropped()
    batch = (torch.randn(8, 16), torch.randint(0, 3, (8,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(model, batch, lambda m, x, y: nn.functional.cross_entropy(m(x), y), optimizer)


def test_all_runs_share_the_dropout_masks_of_the_next_step() -> None:
    made = dropped()
    step = step_of(made)
    torch.manual_seed(3)
    found = gradients(step, list(lockstep(moment(step, *made.batch))))
    expected = step.gradients(*made.batch)  # lockstep has put the generator back
    for weight, seen in found.items():
        assert torch.equal(seen.ours.float() / SCALE, expected[weight])
        torch.testing.assert_close(seen.ours.double(), seen.exact, rtol=0.02, atol=0.5)
    torch.manual_seed(3)
    truth = plain_gradients(made, torch.float32)
    for weight, seen in found.items():
        torch.testing.assert_close(seen.full / SCALE, truth[weight])


def test_lockstep_does_not_change_the_step() -> None:
    losses: list[list[float]] = []
    for looks in (False, True):
        made = dropped()
        step = step_of(made)
        torch.manual_seed(1)
        losses.append([])
        for _ in range(3):
            if looks:
                list(lockstep(moment(step, *made.batch)))
            losses[-1].append(float(step(*made.batch)))
    assert losses[0] == losses[1]


def test_an_op_without_a_kernel_for_fp64_runs_in_fp32() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(6, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = Workload(model, (torch.randn(4, 2, 6),), lambda m, x: m(x)[0].square().mean(), optimizer)
    step = step_of(made, Policy(full=("lstm",)))
    targets = [str(node.target) for node in step.step.gradient.graph.nodes]
    assert any("mkldnn_rnn_layer" in name for name in targets)
    truth = plain_gradients(made, torch.float64)
    found = gradients(step, list(lockstep(moment(step, *made.batch))))
    for weight, seen in found.items():
        torch.testing.assert_close(seen.exact / SCALE, truth[weight], rtol=1e-4, atol=1e-6)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(x)
        hidden = torch.cond(
            hidden.sum() > 1e6, lambda h: (h * 3.0,), lambda h: (torch.softmax(h, -1),), (hidden,)
        )[0]
        result: torch.Tensor = self.leave(hidden)
        return result


def test_branches_are_wide_inside_too() -> None:
    torch.manual_seed(0)
    model = Branch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = Workload(
        model,
        (torch.randn(4, 8), torch.randint(0, 3, (4,))),
        lambda m, x, y: nn.functional.cross_entropy(m(x), y),
        optimizer,
    )
    step = step_of(made)
    truth = plain_gradients(made, torch.float64)
    found = gradients(step, list(lockstep(moment(step, *made.batch))))
    for weight, seen in found.items():
        torch.testing.assert_close(seen.exact / SCALE, truth[weight], rtol=1e-9, atol=1e-12)


def test_the_planted_programs_are_sound_in_fp64() -> None:
    for middle in (marked.Logits, marked.Epsilon, marked.Sum, marked.Underflow):
        made = marked.program(middle)
        for gradient in plain_gradients(made, torch.float64).values():
            assert bool(gradient.isfinite().all())
