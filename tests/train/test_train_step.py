"""TrainStep against hand-written PyTorch: loss scale, skipped steps, ownership of state."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from programs.small_step import Net, batch, compiled, loss, net
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION, BadInput, LossScale, Policy

SCALES = [
    LossScale(2.0**4, 2.0, 0.5, 2, 2.0**-60, 2.0**60),
    LossScale(2.0**16, 2.0, 0.5, 3, 2.0**-60, 2.0**60),
    LossScale(3.0, 1.7, 0.3, 1, 2.0**-60, 2.0**60),
    LossScale(1.0, 4.0, 0.25, 5, 2.0**-60, 2.0**60),
]


@pytest.mark.parametrize("rule", SCALES)
def test_scale_and_tracker_follow_grad_scaler_on_random_sequences(rule: LossScale) -> None:
    """There are 500 sequences per rule, 2,000 in all, of finite and non-finite steps."""

    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.w * x).sum()

    def total(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(x)
        return value

    model = Weight()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = mpcompile.compile(
        model, total, optimizer, (torch.ones(4),), policy=FULL_PRECISION, loss_scale=rule
    )
    start = step.scaler_state()
    clean, bad = torch.full((4,), 1e-20), torch.tensor([1.0, float("inf"), 1.0, float("nan")])
    peer = torch.nn.Parameter(torch.ones(4))
    sgd = torch.optim.SGD([peer], lr=1e-3)
    chooser = random.Random(int(rule.initial))
    for _ in range(500):
        scaler = torch.amp.GradScaler("cpu", rule.initial, rule.growth, rule.backoff, rule.interval)
        scaler.scale(torch.ones(()))
        step.load_scaler_state(start)
        for _ in range(chooser.randint(1, 12)):
            finite = chooser.random() < 0.7
            step(clean if finite else bad)
            peer.grad = (clean if finite else bad).clone()
            scaler.step(sgd)
            scaler.update()
        assert step.scaler_state() == scaler.state_dict()


def test_the_scale_stays_between_floor_and_ceiling() -> None:
    rule = LossScale(4.0, interval=1, floor=2.0, ceiling=8.0)
    step = compiled(net(), loss_scale=rule)
    x, y = batch()
    for _ in range(4):
        step(x, y)
    assert step.loss_scale == 8.0
    for _ in range(4):
        step(x * float("inf"), y)
    assert step.loss_scale == 2.0
    assert (step.taken, step.skipped) == (4, 4)


def test_a_floor_below_one_is_reached() -> None:
    step = compiled(net(), loss_scale=LossScale(1.0, floor=0.25))
    x, y = batch()
    for _ in range(5):
        step(x * float("nan"), y)
    assert step.loss_scale == 0.25


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("target", [name for name, _ in Net().named_parameters()])
def test_one_bad_gradient_leaves_everything_bit_identical(target: str, wrong: float) -> None:
    model = net()
    position = [name for name, _ in model.named_parameters()].index(target)

    def poisoned(
        model: nn.Module, x: torch.Tensor, y: torch.Tensor, poison: torch.Tensor
    ) -> torch.Tensor:
        extra = [p.flatten()[0] * poison[i] for i, p in enumerate(model.parameters())]
        return loss(model, x, y) + torch.stack(extra).sum()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    poison = torch.zeros(len(list(model.parameters())))
    step = mpcompile.compile(model, poisoned, optimizer, (*batch(), poison))
    for seed in range(3):
        step(*batch(seed), poison)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    scale, taken = step.loss_scale, step.taken
    bad = poison.clone()
    bad[position] = wrong
    gradients = step.gradients(*batch(3), bad)
    assert [n for n, g in gradients.items() if not g.isfinite().all()] == [target]
    weights_after_look = copy.deepcopy(model.state_dict())
    step(*batch(3), bad)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
        assert torch.equal(value, weights_after_look[name]), name
    for left, right in zip(
        optimizer.state_dict()["state"].values(), state["state"].values(), strict=True
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert (step.taken, step.skipped) == (taken, 1)
    assert step.loss_scale == scale / 2
    step(*batch(4), poison)
    assert step.taken == taken + 1


@pytest.mark.parametrize("backend", ["interpreter", "inductor"])
def test_a_batch_may_have_another_memory_layout(backend: Any) -> None:
    one = compiled(net(), backend=backend, policy=FULL_PRECISION)
    two = compiled(net(), backend=backend, policy=FULL_PRECISION)
    for seed in range(3):
        x, y = batch(seed)
        assert torch.equal(one(x, y), two(x.t().contiguous().t(), y))


def test_a_batch_on_another_device_is_refused() -> None:
    x, y = batch()
    with pytest.raises(mpcompile.BadInput, match="is on meta, but the example batch was on cpu"):
        compiled(net())(x.to("meta"), y)


def test_the_model_holds_the_masters_bit_for_bit() -> None:
    model = net()
    step = compiled(model)
    for seed in range(5):
        step(*batch(seed))
    named = dict(model.named_parameters())
    for arena in step.step.arenas:
        master = step._state[f"{arena.name}.master"]
        working = step._state.get(f"{arena.name}.working")
        for offset, name, shape in zip(arena.offsets, arena.parameters, arena.shapes, strict=False):
            held = named[name].detach()
            place = slice(offset, offset + held.numel())
            assert torch.equal(held, master[place].view(shape))
            assert (working is not None) == (name in step.step.working)
            if working is not None:
                assert torch.equal(held.half(), working[place].view(shape))
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    assert set(step.step.working) == {"one.weight", "one.bias", "two.weight", "three.bias",
                                      "head.weight", "head.bias"}  # fmt: skip


def test_a_tied_weight_has_one_master_and_one_working_copy() -> None:
    model = net()
    step = compiled(model)
    names = [name for arena in step.step.arenas for name in arena.parameters]
    assert names.count("two.weight") == 1
    assert "three.weight" not in names
    step(*batch())
    assert model.three.weight is model.two.weight


def test_all_fp32_is_bitwise_plain_pytorch() -> None:
    model = net()
    peer = copy.deepcopy(model)
    step = compiled(model, policy=FULL_PRECISION)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-2)
    for seed in range(20):
        expected = loss(peer, *batch(seed))
        optimizer.zero_grad()
        torch.autograd.backward(expected)
        optimizer.step()
        assert torch.equal(step(*batch(seed)), expected.detach())
    for name, value in peer.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_loading_weights_refreshes_the_working_copies() -> None:
    model, other = net(), Net()
    step = compiled(model)
    step(*batch())
    model.load_state_dict(other.state_dict())
    fresh = compiled(other)
    assert torch.equal(step(*batch()), fresh(*batch()))


def test_training_continues_from_an_optimizer_with_state() -> None:
    model, peer = net(), net()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, peer)]
    for m, optimizer in zip((model, peer), optimizers, strict=True):
        torch.autograd.backward(loss(m, *batch()))
        optimizer.step()
        optimizer.zero_grad()
    step = mpcompile.compile(model, loss, optimizers[0], batch(), policy=FULL_PRECISION)
    step(*batch(1))
    torch.autograd.backward(loss(peer, *batch(1)))
    optimizers[1].step()
    for left, right in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)


def test_state_dicts_after_a_step_are_ordinary_checkpoints() -> None:
    model, peer = net(), net()
    step = compiled(model, policy=FULL_PRECISION)
    mine = step._optimizer
    for seed in range(3):
        step(*batch(seed))
    peer.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-2)
    optimizer.load_state_dict(copy.deepcopy(mine.state_dict()))
    torch.autograd.backward(loss(peer, *batch(3)))
    optimizer.step()
    step(*batch(3))
    for left, right in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)


def test_loading_optimizer_state_goes_into_the_arenas() -> None:
    model, other = net(), net()
    step, source = compiled(model), compiled(other)
    for seed in range(3):
        source(*batch(seed))
    model.load_state_dict(other.state_dict())
    step._optimizer.load_state_dict(copy.deepcopy(source._optimizer.state_dict()))
    for seed in range(3, 6):
        assert torch.equal(step(*batch(seed)), source(*batch(seed)))
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_each_parameter_owns_its_step_counter() -> None:
    model = net()
    step = compiled(model)
    step(*batch())
    counters = [entry["step"] for entry in step._optimizer.state.values()]
    assert len({counter.data_ptr() for counter in counters}) == len(counters)
    assert all(float(counter) == 1.0 for counter in counters)


def test_a_step_that_lost_its_weights_says_so() -> None:
    model = net()
    step = compiled(model)
    compiled(model)
    with pytest.raises(BadInput, match="now belongs to a step that was compiled later"):
        step(*batch())


def test_the_learning_rate_may_change() -> None:
    model, peer = net(), net()
    step = compiled(model, policy=FULL_PRECISION)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-2)
    for rate in (1e-2, 3e-3, 5e-2):
        step._optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = rate
        step(*batch())
        optimizer.zero_grad()
        torch.autograd.backward(loss(peer, *batch()))
        optimizer.step()
    for left, right in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(left, right)


def test_bf16_has_no_scale_nodes() -> None:
    step = compiled(net(), policy=Policy(precision=mpcompile.Precision.BF16))
    assert "loss_scale" not in step.step.slots
    assert step.scaler_state() == {}
    step(*batch())
    assert step.loss_scale == 1.0
    assert step.taken == 1


def test_the_whole_step_as_one_graph_computes_the_step() -> None:
    model = net()
    step = compiled(model)
    for seed in range(2):
        step(*batch(seed))
    whole = step.step_graph
    slots = [node.meta["slot"] for node in whole.graph.find_nodes(op="placeholder")]
    given = dict(zip(("batch.0", "batch.1"), batch(2), strict=True))
    values = [given[name] if name in given else step._state[name].clone() for name in slots]
    results = whole(*values)
    expected = step(*batch(2))
    named = dict(zip(whole.graph.output_node().meta["slots"], results, strict=True))
    # The CPU's own FP16 kernels round in other places than pseudo FP16 does.
    torch.testing.assert_close(named["loss"], expected, rtol=2e-3, atol=2e-3)
    assert named["steps_taken"] == step.taken
    moved = (named["arena0.master"] - step._state["arena0.master"]).abs().max()
    assert moved <= 2 * 1e-2  # one AdamW step moves a weight by lr at most


def test_a_batch_of_other_dimensions_is_refused_with_both_shapes() -> None:
    step = compiled(net())
    x, y = batch()
    with pytest.raises(BadInput, match=r"batch\.0 is float32\[96\].*float32\[12, 8\]"):
        step(x.flatten(), y)
    with pytest.raises(BadInput, match=r"batch\.0 is float64\[12, 8\].*float32\[12, 8\]"):
        step(x.double(), y)
    with pytest.raises(BadInput, match="called with 1 tensors"):
        step(x)


def test_scaler_state_of_other_factors_is_refused() -> None:
    step = compiled(net())
    state = torch.amp.GradScaler("cpu", growth_factor=3.0).state_dict()
    with pytest.raises(BadInput, match=r"growth_factor is 3\.0"):
        step.load_scaler_state(state)
    with pytest.raises(BadInput, match="keys"):
        step.load_scaler_state({})


@pytest.mark.parametrize(
    "options",
    [
        {"initial": 2.0**-30},
        {"initial": 2.0**30},
        {"growth": 0.5},
        {"backoff": 0.0},
        {"interval": 0},
        {"floor": 0.0},
    ],
)
def test_a_senseless_scale_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        LossScale(**options)  # type: ignore[arg-type]
