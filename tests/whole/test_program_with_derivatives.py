"""A program with derivatives and writes of its own, together with what else a step can do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from oracles.eager_training import SideBySide, adamw, batches
from oracles.simulated_ranks import among, run_together
from torch import nn

import mpcompile
from mpcompile import FULL_PRECISION
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import to_step, transform
from mpcompile.program.workload import Workload
from mpcompile.step.graph import placeholders
from mpcompile.step.transformed import Choices

BATCHES = batches(12, (6, 8), (6, 8))
Tensor = torch.Tensor


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


class ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.t() * 0.5, x.t() @ grad


class Net(nn.Module):
    """Functions, hooks of a tensor and of a weight, a buffer written without gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)
        self.register_buffer("centre", torch.zeros(16))
        self.centre: Tensor

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.register_hook(lambda grad: grad.clamp(-1e-2, 1e-2))
        with torch.no_grad():
            self.centre.mul_(0.9).add_(h.mean(0), alpha=0.1)
        h = ByHand.apply(torch.tanh(h - self.centre), self.mix)  # type: ignore[no-untyped-call]
        result: Tensor = self.last(Reverse.apply(h, 0.5))  # type: ignore[no-untyped-call]
        return result


def hooked(net: Net) -> None:
    net.last.weight.register_hook(lambda grad: grad * 0.5)


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = ((model(x) - y) ** 2).mean()
    return result


def test_several_calls_an_update_and_clipping() -> None:
    pair = SideBySide(Net(), squared, BATCHES[0], prepare=hooked, accumulate=2, max_grad_value=1e-3)

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_value_(pair.eager.parameters(), 1e-3)

    pair.eager_optimizer.register_step_pre_hook(clip)
    pair.train(BATCHES)
    assert pair.distance() < 1e-5


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    pair = SideBySide(Net(), squared, BATCHES[0], prepare=hooked)
    pair.train(BATCHES[:6])
    pair.step.save(tmp_path)
    other = Net()
    hooked(other)
    optimizer = adamw(other.parameters())
    step = mpcompile.compile(other, squared, optimizer, BATCHES[0], policy=FULL_PRECISION)
    step.load(tmp_path)
    pair.train(BATCHES[6:])
    for batch in BATCHES[6:]:
        step(*batch)
    assert pair.differing() == []
    theirs = pair.eager.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in other.state_dict().items())


def test_several_processes_average_the_gradients_of_the_whole_batch() -> None:
    net = Net()
    hooked(net)
    eager = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    workload = Workload(net, BATCHES[0], squared, optimizer)
    step = transform(workload, Choices(policy=FULL_PRECISION, loop=among(2))).step
    assert step is not None
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    inputs = []
    for batch in BATCHES[:2]:
        given = {**state, "batch.0": batch[0], "batch.1": batch[1]}
        inputs.append([given[name].detach() for name in placeholders(step.gradient.graph)])
    results = run_together(step.gradient.graph, inputs)
    names = [name for name in step.slots if name.startswith("grad.")]
    made = dict(zip(_results(step.gradient.graph), results[0], strict=True))
    hooked_again = [copy.deepcopy(eager) for _ in range(2)]
    for model, batch in zip(hooked_again, BATCHES[:2], strict=True):
        hooked(model)
        squared(model, *batch).backward()
    for name in names:
        parts = [model.get_parameter(name.removeprefix("grad.")).grad for model in hooked_again]
        mean = (parts[0] + parts[1]) / 2  # type: ignore[operator]
        torch.testing.assert_close(made[name], mean, rtol=1e-5, atol=1e-7)


def _results(graph: torch.fx.Graph) -> list[str]:
    names: tuple[str, ...] = graph.output_node().meta["slots"]
    return list(names)


def test_the_exported_step_trains_alike(tmp_path: Path) -> None:
    pair = SideBySide(Net(), squared, BATCHES[0], prepare=hooked)
    exported = Net()
    hooked(exported)
    workload = Workload(exported, BATCHES[0], squared, adamw(exported.parameters()))
    made = transform(workload, Choices(policy=FULL_PRECISION))
    path = tmp_path / "train.onnx"
    export_step(made, path)
    runtime = OrtTrainStep(path)
    theirs = [value for _, value in pair.train(BATCHES)]
    mine = [float(runtime(*(value.numpy() for value in batch))) for batch in BATCHES]
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-4, atol=1e-5)


def test_the_functional_step_graph_is_that_of_the_step() -> None:
    net = Net()
    hooked(net)
    workload = Workload(net, BATCHES[0], squared, adamw(net.parameters()))
    step = to_step(transform(workload, Choices(policy=FULL_PRECISION)))
    step.step_graph.graph.lint()
    assert "own_backward" not in str(step.step)
